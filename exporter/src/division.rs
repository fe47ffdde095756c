//! Owns the arithmetic of dividing a device's value among its owners. Pure.

/// Divides `total` by `parts`, which are in its unit, and gives the rest that is nobody's. Parts that
/// exceed the whole are scaled down in proportion. What comes out adds up to `total` exactly.
pub(crate) fn divide(total: u64, parts: &[f64]) -> (Vec<u64>, u64) {
    let valid = |part: &f64| if part.is_finite() { part.max(0.0) } else { 0.0 };
    let sum: f64 = parts.iter().map(valid).sum();
    let scale = if sum > total as f64 { total as f64 / sum } else { 1.0 };
    let mut rest = total;
    let divided = parts
        .iter()
        .map(|part| {
            // A hair above a whole number is that number: 30 % of many slots is no 29.99 %.
            let part = ((valid(part) * scale + 1e-6).floor() as u64).min(rest);
            rest -= part;
            part
        })
        .collect();
    (divided, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_less_of_more_and_of_nothing() {
        assert_eq!(divide(100, &[30.0, 15.5]), (vec![30, 15], 55));
        assert_eq!(divide(100, &[150.0, 50.0]), (vec![75, 25], 0));
        assert_eq!(divide(0, &[10.0, 0.0]), (vec![0, 0], 0));
        assert_eq!(divide(7, &[]), (vec![], 7));
        assert_eq!(divide(100, &[f64::NAN, -5.0, 40.0]), (vec![0, 0, 40], 60));
    }

    proptest::proptest! {
        #[test]
        fn it_always_adds_up(total in 0u64..200_000, parts in proptest::collection::vec(0.0f64..100_000.0, 0..9)) {
            let (divided, rest) = divide(total, &parts);
            proptest::prop_assert_eq!(divided.iter().sum::<u64>() + rest, total);
            for (divided, part) in divided.iter().zip(&parts) {
                proptest::prop_assert!(*divided as f64 <= part + 1e-3);
            }
        }
    }
}
