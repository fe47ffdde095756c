//! Owns the ring of power samples, 20 ms apart.

use super::figures;
use super::timeline::Timeline;

/// Samples that NVML keeps.
pub(crate) const SAMPLES: usize = 119;
/// Their spacing, µs.
const SPACING_US: i64 = 20_000;

/// Power samples newer than a timestamp, oldest first: when each ended, and milliwatts.
pub(crate) fn samples(timeline: &Timeline, now_us: i64, seen_us: u64) -> Vec<(u64, u32)> {
    let last = now_us.div_euclid(SPACING_US);
    (last - SAMPLES as i64 + 1..=last)
        .map(|number| number * SPACING_US)
        .filter(|end_us| *end_us as u64 > seen_us)
        .map(|end_us| (end_us as u64, power_mw(timeline, end_us)))
        .collect()
}

/// The newest sample, milliwatts.
pub(crate) fn newest(timeline: &Timeline, now_us: i64) -> u32 {
    power_mw(timeline, now_us.div_euclid(SPACING_US) * SPACING_US)
}

fn power_mw(timeline: &Timeline, end_us: i64) -> u32 {
    figures::power_mw(timeline.mean_before(end_us, SPACING_US)).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Load;
    use crate::model::timeline::Source;

    #[test]
    fn a_full_gpu_has_119_samples_of_its_full_power() {
        let timeline = Timeline::new(Source::Loads(vec![(None, Load::Constant(100.0))]));
        let all = samples(&timeline, 1_795_277_919_232_070, 0);
        assert_eq!(all.len(), SAMPLES);
        assert!(all.windows(2).all(|w| w[1].0 - w[0].0 == 20_000));
        assert!(all.iter().all(|(_, mw)| *mw == 690_869));
        assert_eq!(newest(&timeline, 1_795_277_919_232_070), 690_869);
        assert_eq!(samples(&timeline, 1_795_277_919_232_070, all[100].0).len(), 18);
    }
}
