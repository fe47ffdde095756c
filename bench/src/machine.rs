//! What the figures were measured on, when and how.

use std::fmt;

use anyhow::Context as _;

/// The machine, the date and the command line.
#[derive(Debug)]
pub(crate) struct Machine {
    cores: usize,
    model: String,
    memory_gib: f64,
    kernel: String,
    virtual_machine: bool,
    /// Processes that ran beside this one in the last minute, on average, before it began.
    load: String,
    date: String,
    command: String,
}

impl Machine {
    pub(crate) fn look() -> anyhow::Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_owned());
        let cpu = read("/proc/cpuinfo")?;
        let field = |name: &str| {
            let line = cpu.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = read("/proc/meminfo")?;
        let kib: f64 = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
            .context("/proc/meminfo has no MemTotal")?;
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let command = match arguments.join(" ") {
            none if none.is_empty() => "make bench".to_owned(),
            some => format!("make bench ARGS=\"{some}\""),
        };
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            model: field("model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            memory_gib: kib / 1024.0 / 1024.0,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            virtual_machine: field("flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor")),
            load: read("/proc/loadavg")?.split(' ').next().unwrap_or_default().to_owned(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            command,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, model, memory_gib, kernel, load, date, command, .. } = self;
        let kind = if self.virtual_machine { "virtual machine" } else { "machine" };
        write!(
            f,
            "Machine: {kind} of {cores} cores, {model}, {memory_gib:.0} GiB, Linux {kernel}; \
             load average {load} before the run. Date: {date}. Command: `{command}`"
        )
    }
}
