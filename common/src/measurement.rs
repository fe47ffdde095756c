//! Separates measurements from what drivers and exporters write where nothing was measured.
//!
//! The exporter asks before it converts a raw number, the adapter before it keeps a sample: one
//! rule for both, so that an all-ones word never becomes 4.3 million watts.

/// Numbers that a driver or DCGM writes for "not measured", as they come and after the usual
/// conversions to a unit: all ones of 32 and 64 bits, and DCGM's blank values, which begin at a
/// number for each type and are followed by one number for each reason.
const SENTINELS: [std::ops::RangeInclusive<f64>; 6] = [
    // DCGM_INT32_BLANK and its reasons.
    2_147_483_632.0..=2_147_483_647.0,
    // u32::MAX, also ÷ 1000 (mW, ms) and ÷ 1,000,000.
    4_294_967_295.0..=4_294_967_295.0,
    4_294_967.294..=4_294_967.296,
    // DCGM_FP64_BLANK and its reasons.
    140_737_488_355_328.0..=140_737_488_355_343.0,
    // DCGM_INT64_BLANK and its reasons; i64::MAX.
    9_223_372_036_854_775_000.0..=9_223_372_036_854_776_000.0,
    // u64::MAX, which is 2^64 as a float.
    18_446_744_073_709_550_000.0..=18_446_744_073_709_552_000.0,
];

/// Which values are possible for a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Any finite number. Of a quantity that nothing is known of.
    Finite,
    /// Counters, sizes and rates.
    NotNegative,
    /// 0 to 100.
    Percent,
    /// 0 to 1.
    Ratio,
    /// 0 to 100 kW: fifty times the largest board of 2026.
    Watts,
    /// −100 to 200 °C.
    Celsius,
    /// 0 to 100 GHz.
    Megahertz,
    /// 0 to 100 GHz.
    Hertz,
    /// 0 to 64 TiB: a hundred times the largest device of 2026. A size that was subtracted below
    /// zero is far above that.
    Mebibytes,
}

/// Whether a raw number means "not measured".
pub fn is_sentinel(value: f64) -> bool {
    SENTINELS.iter().any(|sentinels| sentinels.contains(&value))
}

/// `value` if a 32-bit word of the driver can be a measurement.
pub fn measured_u32(value: u32) -> Option<u32> {
    (!is_sentinel(f64::from(value))).then_some(value)
}

/// `value` if a 64-bit word of the driver can be a measurement. All ones of 32 bits are refused as
/// well: drivers widen them.
pub fn measured_u64(value: u64) -> Option<u64> {
    (!is_sentinel(value as f64)).then_some(value)
}

/// `part` if it can be a part of `whole`, in the same unit.
pub fn part_of(part: u64, whole: u64) -> Option<u64> {
    (part <= whole).then_some(part)
}

impl Bound {
    /// The bound of a unit as the catalogue and counters files write it.
    pub fn of_unit(unit: &str) -> Self {
        match unit {
            "%" => Self::Percent,
            "ratio" => Self::Ratio,
            "W" => Self::Watts,
            "°C" => Self::Celsius,
            "MHz" => Self::Megahertz,
            "Hz" => Self::Hertz,
            "MiB" => Self::Mebibytes,
            "" => Self::Finite,
            _ => Self::NotNegative,
        }
    }

    /// Whether `value` can be a measurement of this quantity: finite, no sentinel, within the bound.
    pub fn admits(self, value: f64) -> bool {
        // For what is lost in printing and dividing.
        const HAIR: f64 = 1e-6;
        let within = match self {
            Self::Finite => true,
            Self::NotNegative => value >= 0.0,
            Self::Percent => (0.0..=100.0 + HAIR).contains(&value),
            Self::Ratio => (0.0..=1.0 + HAIR).contains(&value),
            Self::Watts | Self::Megahertz => (0.0..=100_000.0).contains(&value),
            Self::Celsius => (-100.0..=200.0).contains(&value),
            Self::Hertz => (0.0..=100e9).contains(&value),
            Self::Mebibytes => (0.0..=67_108_864.0).contains(&value),
        };
        value.is_finite() && within && !is_sentinel(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ones_and_blanks_are_no_measurement_in_any_width() {
        for word in [u32::MAX, i32::MAX as u32, 0x7fff_fff0, 0x7fff_fff3] {
            assert_eq!(measured_u32(word), None, "{word}");
            assert_eq!(measured_u64(word.into()), None, "{word}");
        }
        for word in [u64::MAX, i64::MAX as u64, 0x7fff_ffff_ffff_fff0, 0x7fff_ffff_ffff_fff3] {
            assert_eq!(measured_u64(word), None, "{word}");
        }
        assert!(!Bound::Watts.admits(f64::from(u32::MAX) / 1000.0));
        assert!(!Bound::Finite.admits(f64::from(u32::MAX) / 1000.0));
        assert!(!Bound::NotNegative.admits(140_737_488_355_330.0));
    }

    #[test]
    fn measurements_are_measurements() {
        for (unit, value) in [
            ("%", 100.0),
            ("W", 700.0),
            ("°C", -5.0),
            ("MiB", 81_559.0),
            ("mJ", 3e12),
            ("ratio", 1.0),
            ("", -1.0),
        ] {
            assert!(Bound::of_unit(unit).admits(value), "{value} {unit}");
        }
        assert_eq!((measured_u32(0), measured_u64(1 << 40)), (Some(0), Some(1 << 40)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (unit, value) in [
            ("%", 100.5),
            ("%", -1.0),
            ("W", 4_000_000.0),
            ("°C", 255.0),
            ("MiB", -1.0),
            // A negative number of bytes in 64 bits without a sign.
            ("MiB", 17_592_186_044_415.0),
            ("ratio", 1.5),
            ("", f64::NAN),
        ] {
            assert!(!Bound::of_unit(unit).admits(value), "{value} {unit}");
        }
        assert_eq!((part_of(5, 4), part_of(4, 4)), (None, Some(4)));
    }
}
