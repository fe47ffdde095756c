//! Owns Kubernetes quantities: a number in thousandths, printed in canonical decimal-SI form.

use std::fmt;

/// A quantity in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    milli: i64,
}

impl Quantity {
    /// From thousandths.
    pub const fn from_milli(milli: i64) -> Self {
        Self { milli }
    }

    /// From a float, rounded to the nearest thousandth. `None` for NaN, infinities and what does
    /// not fit: those are not answers.
    pub fn from_f64(value: f64) -> Option<Self> {
        let milli = (value * 1000.0).round();
        // i64::MAX as a float rounds up to 2^63, which no longer fits.
        (milli.is_finite() && milli.abs() < i64::MAX as f64).then_some(Self { milli: milli as i64 })
    }

    /// In thousandths.
    pub const fn milli(self) -> i64 {
        self.milli
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves no fraction. 63.5 is `63500m`, 1000 is `1k`,
    /// 1500 is `1500`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.milli == 0 {
            return f.write_str("0");
        }
        let mut number = self.milli;
        let mut suffix = 0;
        const SUFFIXES: [&str; 7] = ["m", "", "k", "M", "G", "T", "P"];
        while number % 1000 == 0 && suffix < SUFFIXES.len() - 1 {
            number /= 1000;
            suffix += 1;
        }
        write!(f, "{number}{}", SUFFIXES[suffix])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_canonical_form() {
        for (value, text) in [
            (63.5, "63500m"),
            (30.0, "30"),
            (1000.0, "1k"),
            (1500.0, "1500"),
            (0.0, "0"),
            (0.0004, "0"),
            (0.0005, "1m"),
            (-5.0, "-5"),
            (85_520_809_984.0, "85520809984"),
            (2e15, "2P"),
        ] {
            assert_eq!(Quantity::from_f64(value).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_number_is_no_quantity() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e18] {
            assert_eq!(Quantity::from_f64(value), None);
        }
    }
}
