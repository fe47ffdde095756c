//! Owns the reading of `--metric NAME[,window=DURATION][,aggregation=mean|max]`.

use std::time::Duration;

use podgauge_common::duration::parse_go_duration;

use super::Aggregation;

/// What one `--metric` says of one metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricFlag {
    /// A built-in metric's name, or a family's of the exporters' pages.
    pub name: String,
    pub window: Option<Duration>,
    pub aggregation: Option<Aggregation>,
}

impl MetricFlag {
    /// # Errors
    /// What is wrong with it, for the command line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(legal) {
            return Err(format!("{name:?} is not the name of a Prometheus metric"));
        }
        let mut flag = Self { name: name.to_owned(), window: None, aggregation: None };
        for part in parts {
            match part.split_once('=') {
                Some(("window", value)) => flag.window = Some(parse_go_duration(value)?),
                Some(("aggregation", "mean")) => flag.aggregation = Some(Aggregation::Mean),
                Some(("aggregation", "max")) => flag.aggregation = Some(Aggregation::Max),
                Some(("aggregation", other)) => {
                    return Err(format!("aggregation={other} is unknown: mean or max"));
                }
                _ => return Err(format!("{part:?} is unknown: window=DURATION or aggregation=mean|max")),
            }
        }
        Ok(flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_what_is_said_of_it() {
        let flag =
            |name: &str, window, aggregation| Ok(MetricFlag { name: name.to_owned(), window, aggregation });
        assert_eq!(MetricFlag::parse("DCGM_FI_DEV_GPU_TEMP"), flag("DCGM_FI_DEV_GPU_TEMP", None, None));
        assert_eq!(
            MetricFlag::parse("gpu_utilization,aggregation=max,window=1m30s"),
            flag("gpu_utilization", Some(Duration::from_secs(90)), Some(Aggregation::Max))
        );
        for wrong in
            ["", "9a", "a b", "a,", "a,window", "a,window=soon", "a,aggregation=sum", "a,as=b", ",window=1s"]
        {
            assert!(MetricFlag::parse(wrong).is_err(), "{wrong}");
        }
    }
}
