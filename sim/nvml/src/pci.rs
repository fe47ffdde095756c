//! Owns PCI addresses in the spellings that NVML and its callers use.

/// Where a GPU sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PciAddress {
    pub(crate) domain: u32,
    pub(crate) bus: u8,
    pub(crate) device: u8,
    pub(crate) function: u8,
}

impl PciAddress {
    /// Reads `[<domain>:]<bus>:<device>[.<function>]`, hexadecimal, a domain of up to eight digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, function) = text.split_once('.').unwrap_or((text, "0"));
        let mut parts = address.rsplit(':');
        let device = u8::from_str_radix(parts.next()?, 16).ok()?;
        let bus = u8::from_str_radix(parts.next()?, 16).ok()?;
        let domain = parts.next().map_or(Some(0), |domain| u32::from_str_radix(domain, 16).ok())?;
        let function = u8::from_str_radix(function, 16).ok()?;
        if parts.next().is_some() || device > 0x1f || function > 7 {
            return None;
        }
        Some(Self { domain, bus, device, function })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_address_is_the_same_address() {
        let want = PciAddress { domain: 0, bus: 0x1a, device: 0, function: 0 };
        for text in ["00000000:1A:00.0", "0000:1a:00.0", "1A:00.0", "1a:00"] {
            assert_eq!(PciAddress::parse(text), Some(want), "{text}");
        }
        for text in ["", "17", "1A:00:00:00.0", "0:1:20.0", "0:1:1.8", "zz:00.0"] {
            assert_eq!(PciAddress::parse(text), None, "{text}");
        }
    }
}
