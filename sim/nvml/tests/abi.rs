//! The built shared library, loaded by nvml-wrapper as the exporter loads it.
//!
//! The library reads its scenario's name from the environment, so each test runs itself again as
//! a child process with the variable set.
#![allow(clippy::unwrap_used, reason = "all of this is test code, helpers included")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nvml_wrapper::bitmasks::InitFlags;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, ClockId, Sampling, TemperatureSensor};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::gpm_metrics_get;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml};
use podgauge_sim_nvml::{SCENARIO_VARIABLE, write_library_without};

/// Set in the child: the scenario's path, whether the library is told it or not.
const CHILD: &str = "SIM_NVML_TEST_SCENARIO";
/// What the child prints last.
const DONE: &str = "the body ran to its end";
/// How long a change may take to show. Reached only when something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `body` in a child process with this scenario, and answers what the child printed. In the
/// child itself it runs the body and exits.
fn with_scenario(test: &str, yaml: &str, body: impl FnOnce(&Path)) -> Output {
    run(test, yaml, true, body)
}

fn run(test: &str, yaml: &str, tell: bool, body: impl FnOnce(&Path)) -> Output {
    if let Some(path) = std::env::var_os(CHILD) {
        body(Path::new(&path));
        println!("{DONE}");
        std::process::exit(0);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scenario.yaml");
    std::fs::write(&path, yaml).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env(CHILD, &path).env_remove(SCENARIO_VARIABLE);
    if tell {
        child.env(SCENARIO_VARIABLE, &path);
    }
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A child that was given a wrong test's name runs nothing and succeeds.
    assert!(String::from_utf8_lossy(&output.stdout).contains(DONE), "the child did not run {test}");
    output
}

fn library() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let name = "libpodgauge_sim_nvml.so";
    [folder.join(name), folder.join("..").join(name)].into_iter().find(|path| path.exists()).unwrap()
}

fn load() -> Nvml {
    Nvml::builder().lib_path(library().as_os_str()).init().unwrap()
}

fn recording(name: &str) -> String {
    format!("{}/../../tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Asks until the answer is there.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Utilization samples newer than a timestamp: timestamp and percent.
fn samples(device: &Device<'_>, since: u64) -> Vec<(u64, u32)> {
    match device.samples(Sampling::GpuUtilization, since) {
        Ok(samples) => samples
            .into_iter()
            .map(|sample| match sample.value {
                SampleValue::U32(percent) => (sample.timestamp, percent),
                other => panic!("{other:?}"),
            })
            .collect(),
        Err(NvmlError::NotFound) => Vec::new(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_ring_gives_71_slots_and_then_only_newer_ones() {
    with_scenario(
        "the_ring_gives_71_slots_and_then_only_newer_ones",
        "gpus: [{load: {constant: 40}}]",
        |_| {
            let nvml = load();
            let device = nvml.device_by_index(0).unwrap();
            let all = samples(&device, 0);
            assert_eq!(all.len(), 71);
            assert!(all.iter().all(|(_, percent)| *percent == 40));
            assert!(all.windows(2).all(|w| (195_000..=205_000).contains(&(w[1].0 - w[0].0))));
            let newest = all.last().unwrap().0;
            assert!((now_s() - newest as f64 / 1e6).abs() < 5.0, "not the epoch's microseconds");

            let newer = until("a new slot", || Some(samples(&device, newest)).filter(|new| !new.is_empty()));
            assert!(newer.iter().all(|(at, _)| *at > newest));
            let last = newer.last().unwrap().0;
            until("NOT_FOUND when nothing is newer", || {
                matches!(
                    device.samples(Sampling::GpuUtilization, last + 10_000_000),
                    Err(NvmlError::NotFound)
                )
                .then_some(())
            });
            assert_eq!(device.samples(Sampling::Power, None).unwrap().len(), 119);
            assert_eq!(device.samples(Sampling::MemoryUtilization, None).unwrap().len(), 71);
            assert!(matches!(device.samples(Sampling::ProcessorClock, None), Err(NvmlError::NotFound)));
        },
    );
}

#[test]
fn utilization_rates_are_the_newest_slot() {
    with_scenario(
        "utilization_rates_are_the_newest_slot",
        "gpus: [{load: {square: {low: 20, high: 60, period_s: 1.7}}}]",
        |_| {
            let nvml = load();
            let device = nvml.device_by_index(0).unwrap();
            let newest = || *samples(&device, 0).last().unwrap();
            let mut agreed = BTreeMap::new();
            until("both levels of the wave", || {
                let (before, rates, after) = (newest(), device.utilization_rates().unwrap(), newest());
                if before == after {
                    assert_eq!(rates.gpu, before.1);
                    agreed.insert(rates.gpu, ());
                }
                (agreed.contains_key(&20) && agreed.contains_key(&60)).then_some(())
            });
        },
    );
}

#[test]
fn process_samples_add_up_to_the_shares_one_process_a_slot() {
    with_scenario(
        "process_samples_add_up_to_the_shares_one_process_a_slot",
        "gpus: [{}]\n\
         processes: [{pid: 4100001, gpu: 0, load: {constant: 48}}, {pid: 4100002, gpu: 0, load: {constant: 12}}]",
        |_| {
            let nvml = load();
            let device = nvml.device_by_index(0).unwrap();
            let first = samples(&device, 0).last().unwrap().0;
            let (mut seen, mut credited) = (first, BTreeMap::<u64, u32>::new());
            until("30 slots", || {
                match device.process_utilization_stats(seen) {
                    Ok(rows) => {
                        assert!(rows.len() <= 2, "more than one sample of a process: {rows:?}");
                        for row in rows {
                            assert_eq!(row.sm_util, 60, "a slot credits one process with all of it");
                            assert!(credited.insert(row.timestamp, row.pid).is_none(), "two for one slot");
                            seen = seen.max(row.timestamp);
                        }
                    }
                    Err(NvmlError::NotFound) => {}
                    Err(other) => panic!("{other}"),
                }
                (credited.len() >= 30).then_some(())
            });
            let slots = samples(&device, first).into_iter().filter(|(at, _)| *at <= seen).count();
            assert_eq!(slots, credited.len(), "every slot of the device credits somebody");
            let big = credited.values().filter(|pid| **pid == 4100001).count() as f64;
            assert!((big / credited.len() as f64 - 0.8).abs() < 0.05, "{credited:?}");
        },
    );
}

#[test]
fn a_replay_is_its_recording_played_once() {
    let file = recording("h100-utilization.json");
    // Begun so long ago that all of it has been and nothing has left the ring; over and out of
    // the ring; and not begun.
    let gpu = |ago: f64| format!("{{replay: {{file: {file}, run: A30slow, start: {}}}}}", now_s() - ago);
    let yaml = format!("gpus: [{}, {}, {}]", gpu(9.5), gpu(60.0), gpu(-3600.0));
    with_scenario("a_replay_is_its_recording_played_once", &yaml, |_| {
        let nvml = load();
        let played = samples(&nvml.device_by_index(0).unwrap(), 0);
        assert_eq!(played.len(), 45);
        let mean = played.iter().map(|(_, percent)| f64::from(*percent)).sum::<f64>() / 45.0;
        assert!((mean - 29.844).abs() < 0.001, "{mean}");
        assert!(matches!(nvml.device_by_index(0).unwrap().utilization_rates(), Err(NvmlError::NoData)));
        for silent in [1, 2] {
            let device = nvml.device_by_index(silent).unwrap();
            assert!(matches!(device.samples(Sampling::GpuUtilization, None), Err(NvmlError::NotFound)));
            assert!(matches!(device.utilization_rates(), Err(NvmlError::NoData)));
            assert!(matches!(device.process_utilization_stats(None), Err(NvmlError::NotFound)));
            assert!(device.power_usage().is_ok());
        }
    });
}

#[test]
fn a_replay_of_processes_credits_and_lists_the_recorded_pids() {
    let yaml = format!(
        "gpus: [{{replay: {{file: {}, run: 60+20}}}}]\nprocesses: [{{pid: 509, gpu: 0, memory_mib: 100}}]",
        recording("h100-processes.json")
    );
    with_scenario("a_replay_of_processes_credits_and_lists_the_recorded_pids", &yaml, |_| {
        let nvml = load();
        let device = nvml.device_by_index(0).unwrap();
        let (mut seen, mut rows) = (0, Vec::new());
        until("eight slots", || {
            for row in device.process_utilization_stats(seen).unwrap_or_default() {
                seen = seen.max(row.timestamp);
                rows.push((row.pid, row.sm_util));
            }
            (rows.len() >= 8).then_some(())
        });
        assert_eq!(rows[..6], [(509, 16), (510, 63), (509, 65), (509, 67), (509, 64), (509, 65)]);
        let device_slots = samples(&device, 0);
        assert_eq!(device_slots[1].1, 63, "a slot's device value is its process's");
        assert_eq!(device_slots[1].0 - device_slots[0].0, 197_000, "the recording's own spacing");
        let running = device.running_compute_processes().unwrap();
        let memory: BTreeMap<u32, UsedGpuMemory> =
            running.into_iter().map(|process| (process.pid, process.used_gpu_memory)).collect();
        assert_eq!(memory[&509], UsedGpuMemory::Used(100 << 20));
        assert!(memory.contains_key(&510));
        assert_eq!(device.utilization_rates().unwrap().gpu, samples(&device, 0).last().unwrap().1);
    });
}

#[test]
fn a_running_program_sees_the_scenario_change_and_a_bad_file_changes_nothing() {
    let output = with_scenario(
        "a_running_program_sees_the_scenario_change_and_a_bad_file_changes_nothing",
        "gpus: [{load: {constant: 10}}, {}]",
        |path| {
            let nvml = load();
            let (first, second) = (nvml.device_by_index(0).unwrap(), nvml.device_by_index(1).unwrap());
            assert_eq!(first.utilization_rates().unwrap().gpu, 10);
            let before = samples(&first, 0);
            std::fs::write(
                path,
                "gpus: [{load: {constant: 90}, errors: {nvmlDeviceGetName: NO_PERMISSION}}]",
            )
            .unwrap();
            until("the new load", || (first.utilization_rates().unwrap().gpu == 90).then_some(()));
            let after = samples(&first, 0);
            let kept = after.iter().filter(|slot| before.contains(slot)).count();
            assert!(kept > 60 && after[0].1 == 10, "the past was rewritten: {after:?}");
            assert!(matches!(first.name(), Err(NvmlError::NoPermission)));
            assert_eq!(nvml.device_count().unwrap(), 1);
            assert!(matches!(second.name(), Err(NvmlError::GpuLost)));

            std::fs::write(path, "gpus: [{load: {constant: lots}}]").unwrap();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(500) {
                assert_eq!(first.utilization_rates().unwrap().gpu, 90);
            }
            std::fs::write(path, "gpus: [{}, {}, {}]").unwrap();
            until("three GPUs", || (nvml.device_count().unwrap() == 3).then_some(()));
            assert_eq!(second.name().unwrap(), "NVIDIA H100 80GB HBM3");
        },
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.matches("keeping the last good scenario").count(), 1, "{stderr}");
}

#[test]
fn errors_of_the_scenario_are_answered_by_call_gpu_and_field() {
    with_scenario(
        "errors_of_the_scenario_are_answered_by_call_gpu_and_field",
        "gpus: [{errors: {nvmlDeviceGetTemperature: NOT_SUPPORTED, 'nvmlDeviceGetFieldValues:83': NO_PERMISSION}}, {errors: {all: GPU_IS_LOST}}]\n\
         errors: {nvmlSystemGetDriverVersion: LIB_RM_VERSION_MISMATCH, nvmlDeviceGetPcieReplayCounter: NOT_READY}",
        |_| {
            let nvml = load();
            let device = nvml.device_by_index(0).unwrap();
            assert!(matches!(device.temperature(TemperatureSensor::Gpu), Err(NvmlError::NotSupported)));
            assert!(device.power_usage().is_ok());
            assert!(matches!(nvml.device_by_index(1), Err(NvmlError::GpuLost)));
            assert!(matches!(nvml.sys_driver_version(), Err(NvmlError::LibRmVersionMismatch)));
            assert!(matches!(device.pcie_replay_counter(), Err(NvmlError::UnexpectedVariant(27))));
            let fields = device.field_values_for(&[FieldId(83), FieldId(82), FieldId(138)]).unwrap();
            let results: Vec<_> = fields.into_iter().map(|field| field.unwrap().value).collect();
            assert!(matches!(results[0], Err(NvmlError::NoPermission)));
            assert!(results[1].is_ok());
            assert!(matches!(results[2], Err(NvmlError::NotSupported)));
        },
    );
}

#[test]
fn a_call_taken_out_of_the_library_is_missing_and_the_others_work() {
    with_scenario("a_call_taken_out_of_the_library_is_missing_and_the_others_work", "gpus: [{}]", |path| {
        let old = path.with_file_name("libold.so");
        let without = ["nvmlDeviceGetTemperature".to_owned(), "nvmlDeviceGetSamples".to_owned()];
        write_library_without(&library(), &old, &without).unwrap();
        let nvml = Nvml::builder().lib_path(old.as_os_str()).init().unwrap();
        let device = nvml.device_by_index(0).unwrap();
        assert!(matches!(device.temperature(TemperatureSensor::Gpu), Err(NvmlError::FailedToLoadSymbol(_))));
        assert!(matches!(
            device.samples(Sampling::GpuUtilization, None),
            Err(NvmlError::FailedToLoadSymbol(_))
        ));
        assert!(
            device
                .temperature_threshold(nvml_wrapper::enum_wrappers::device::TemperatureThreshold::Shutdown)
                .is_ok()
        );
        assert!(device.utilization_rates().is_ok());
        let error = write_library_without(&library(), &old, &["nvmlNoSuchCall".into()]).unwrap_err();
        assert!(error.to_string().contains("exports no nvmlNoSuchCall"), "{error}");
    });
}

#[test]
fn a_call_that_blocks_on_one_gpu_leaves_the_others_alone() {
    with_scenario(
        "a_call_that_blocks_on_one_gpu_leaves_the_others_alone",
        "gpus: [{blocks: {nvmlDeviceGetPowerUsage: 3}}, {}]",
        |_| {
            let nvml = load();
            let begun = Instant::now();
            std::thread::scope(|scope| {
                let stuck = scope.spawn(|| nvml.device_by_index(0).unwrap().power_usage());
                let other = nvml.device_by_index(1).unwrap();
                for _ in 0..20 {
                    other.power_usage().unwrap();
                }
                assert!(!stuck.is_finished());
                assert!(stuck.join().unwrap().is_ok());
            });
            assert!(begun.elapsed() >= Duration::from_secs(3));
        },
    );
}

#[test]
fn initialising_without_a_good_scenario_fails_and_says_why() {
    let test = "initialising_without_a_good_scenario_fails_and_says_why";
    let fails = |_: &Path| {
        for _ in 0..2 {
            let result = Nvml::builder().lib_path(library().as_os_str()).flags(InitFlags::NO_GPUS).init();
            assert!(matches!(result, Err(NvmlError::DriverNotLoaded)));
        }
    };
    let untold = run(test, "gpus: [{}]", false, fails);
    assert!(String::from_utf8_lossy(&untold.stderr).contains("PODGAUGE_SIM_SCENARIO is not set"));
    let wrong = run(test, "gpus: [{colour: red}]", true, fails);
    let stderr = String::from_utf8_lossy(&wrong.stderr);
    assert!(stderr.contains("scenario.yaml") && stderr.contains("colour"), "{stderr}");
    let refused = run(test, "errors: {nvmlInit_v2: DRIVER_NOT_LOADED}", true, fails);
    assert!(!String::from_utf8_lossy(&refused.stderr).contains("podgauge-sim-nvml:"));
}

#[test]
fn xids_wake_a_wait_once_each_and_an_empty_wait_lasts_its_time() {
    with_scenario(
        "xids_wake_a_wait_once_each_and_an_empty_wait_lasts_its_time",
        "gpus: [{}, {xids: [43]}]",
        |path| {
            let nvml = load();
            let mut set = nvml.create_event_set().unwrap();
            for index in 0..2 {
                let device = nvml.device_by_index(index).unwrap();
                assert!(device.supported_event_types().unwrap().contains(EventTypes::CRITICAL_XID_ERROR));
                set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).unwrap();
            }
            let event = set.wait(10_000).unwrap();
            assert_eq!((event.event_data, event.device.index().unwrap()), (Some(XidError::Value(43)), 1));
            let begun = Instant::now();
            assert!(matches!(set.wait(300), Err(NvmlError::Timeout)));
            assert!(begun.elapsed() >= Duration::from_millis(300));
            std::thread::scope(|scope| {
                scope.spawn(|| std::fs::write(path, "gpus: [{xids: [79]}, {xids: [43]}]").unwrap());
                let event = set.wait(20_000).unwrap();
                assert_eq!(event.device.index().unwrap(), 0);
            });
            assert!(matches!(set.wait(200), Err(NvmlError::Timeout)));
            drop(set);
            drop(nvml);

            // Loaded afresh, the driver has no history of events.
            let nvml = load();
            let set = nvml.create_event_set().unwrap();
            let device = nvml.device_by_index(1).unwrap();
            let set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).unwrap();
            assert!(matches!(set.wait(200), Err(NvmlError::Timeout)));
        },
    );
}

#[test]
fn an_idle_and_a_full_gpu_answer_what_an_h100_answered() {
    with_scenario(
        "an_idle_and_a_full_gpu_answer_what_an_h100_answered",
        "gpus: [{}, {load: {constant: 100}, nvlink: {links: 18, tx_mib_s: 1800}}]\n\
         processes: [{pid: 7, gpu: 1, memory_mib: 1000}, {pid: 8, gpu: 1, memory_unavailable: true}]",
        |_| {
            let nvml = load();
            assert_eq!(nvml.sys_driver_version().unwrap(), "580.159.04");
            assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13000);
            let (idle, full) = (nvml.device_by_index(0).unwrap(), nvml.device_by_index(1).unwrap());
            let figures = |device: &Device<'_>| {
                (
                    device.power_usage().unwrap(),
                    device.clock_info(Clock::SM).unwrap(),
                    device.clock_info(Clock::Memory).unwrap(),
                    device.temperature(TemperatureSensor::Gpu).unwrap(),
                    device.current_throttle_reasons().unwrap().bits(),
                    device.utilization_rates().unwrap().gpu,
                )
            };
            assert_eq!(figures(&idle), (69_635, 345, 2_619, 33, 1, 0));
            assert_eq!(figures(&full), (690_869, 1_470, 2_619, 57, 4, 100));
            assert_eq!(idle.clock(Clock::Graphics, ClockId::CustomerMaxBoost).unwrap(), 1_980);

            let memory = idle.memory_info().unwrap();
            assert_eq!((memory.total, memory.reserved, memory.used), (85_520_809_984, 503_316_480, 0));
            assert_eq!(memory.total, memory.reserved + memory.used + memory.free);
            assert_eq!(full.memory_info().unwrap().used, (1000 + 512) << 20);
            let running = full.running_compute_processes().unwrap();
            assert_eq!(running[0].used_gpu_memory, UsedGpuMemory::Used(1000 << 20));
            assert_eq!(running[1].used_gpu_memory, UsedGpuMemory::Unavailable);

            assert_eq!(full.pci_info().unwrap().bus_id, "00000000:18:00.0");
            let uuid = full.uuid().unwrap();
            assert_eq!(nvml.device_by_uuid(uuid.as_str()).unwrap().index().unwrap(), 1);
            assert_eq!(nvml.device_by_pci_bus_id("0000:18:00.0").unwrap().index().unwrap(), 1);
            assert!(matches!(nvml.device_by_uuid("GPU-none"), Err(NvmlError::NotFound)));
            assert!(!full.mig_is_mig_device_handle().unwrap() && full.mig_mode().unwrap().current == 0);
            assert!(full.is_ecc_enabled().unwrap().currently_enabled);
            assert!(matches!(full.fan_speed(0), Err(NvmlError::NotSupported)));
            assert!(matches!(idle.link_wrapper_for(0).is_active(), Err(NvmlError::NotSupported)));
            assert!(full.link_wrapper_for(17).is_active().unwrap());
            let energy = full.total_energy_consumption().unwrap();
            until("energy to rise", || (full.total_energy_consumption().unwrap() > energy).then_some(()));
        },
    );
}

#[test]
fn gpm_tells_the_mean_activity_between_two_samples() {
    with_scenario(
        "gpm_tells_the_mean_activity_between_two_samples",
        "gpus: [{load: {constant: 50}, nvlink: {links: 18, tx_mib_s: 1800}}, {}]",
        |_| {
            let nvml = load();
            let device = nvml.device_by_index(0).unwrap();
            assert!(device.gpm_support().unwrap());
            let first = device.gpm_sample().unwrap();
            std::thread::sleep(Duration::from_millis(120));
            let second = device.gpm_sample().unwrap();
            let asked = [
                GpmMetricId::GraphicsUtil,
                GpmMetricId::AnyTensorUtil,
                GpmMetricId::DramBwUtil,
                GpmMetricId::NvlinkTotalTxPerSec,
                GpmMetricId::NvlinkTotalRxPerSec,
            ];
            let values: Vec<f64> = gpm_metrics_get(&nvml, &first, &second, &asked)
                .unwrap()
                .into_iter()
                .map(|metric| metric.unwrap().value)
                .collect();
            for (value, want) in values.iter().zip([50.0, 46.75, 12.5, 1800.0, 0.0]) {
                assert!((value - want).abs() < 0.1, "{values:?}");
            }
            let other = nvml.device_by_index(1).unwrap().gpm_sample().unwrap();
            assert!(gpm_metrics_get(&nvml, &first, &other, &asked).is_err());
        },
    );
}

#[test]
fn mps_credits_the_server_and_a_foreign_pid_namespace_sees_no_list() {
    with_scenario(
        "mps_credits_the_server_and_a_foreign_pid_namespace_sees_no_list",
        "gpus: [{mps_server: 900}, {lists_processes: false}]\n\
         processes: [{pid: 7, gpu: 0, load: {constant: 50}}, {pid: 8, gpu: 1, load: {constant: 50}}]",
        |_| {
            let nvml = load();
            let (mps, foreign) = (nvml.device_by_index(0).unwrap(), nvml.device_by_index(1).unwrap());
            let pids = |device: &Device<'_>| -> Vec<u32> {
                device.running_compute_processes().unwrap().iter().map(|process| process.pid).collect()
            };
            let credited = |device: &Device<'_>| device.process_utilization_stats(None).unwrap()[0].pid;
            assert_eq!((pids(&mps), credited(&mps)), (vec![7, 900], 900));
            assert_eq!(mps.mps_running_compute_processes().unwrap().len(), 1);
            assert_eq!((pids(&foreign), credited(&foreign)), (vec![], 8));
        },
    );
}

#[test]
fn a_gpu_cut_into_instances() {
    const CUT: &str = "
gpus:
  - load: {constant: 10}
  - nvlink: {tx_mib_s: 10}
    mig:
      instances:
        - {profile: 1g.10gb, gi: 7, slot: 2, load: {constant: 40}}
        - {profile: 3g.40gb, gi: 2, slot: 5, uuid: MIG-a, memory_mib: 40448}
processes: [{pid: 77, gpu: 1, gi: 2, load: {constant: 70}, memory_mib: 1024}]
";
    with_scenario("a_gpu_cut_into_instances", CUT, |path| {
        let nvml = load();
        let parent = nvml.device_by_index(1).unwrap();
        assert_eq!((parent.mig_mode().unwrap().current, parent.mig_device_count().unwrap()), (1, 7));
        let slots: Vec<u32> = (0..7)
            .filter(|slot| match parent.mig_device_by_index(*slot) {
                Ok(_) => true,
                Err(error) => {
                    assert!(matches!(error, NvmlError::NotFound), "{error}");
                    false
                }
            })
            .collect();
        assert_eq!(slots, [2, 5]);
        assert!(matches!(parent.mig_device_by_index(7), Err(NvmlError::InvalidArg)));
        let whole = nvml.device_by_index(0).unwrap();
        assert!(matches!(whole.mig_device_by_index(0), Err(NvmlError::NotSupported)));

        let instance = parent.mig_device_by_index(5).unwrap();
        assert_eq!(instance.uuid().unwrap(), "MIG-a");
        assert_eq!(instance.name().unwrap(), "NVIDIA H100 80GB HBM3 MIG 3g.40gb");
        assert_eq!(instance.index().unwrap(), 5);
        assert!(instance.mig_is_mig_device_handle().unwrap());
        assert_eq!(instance.mig_parent_device().unwrap().uuid().unwrap(), parent.uuid().unwrap());
        assert_eq!(nvml.device_by_uuid("MIG-a").unwrap().uuid().unwrap(), "MIG-a");
        let attributes = instance.attributes().unwrap();
        assert_eq!((attributes.gpu_instance_slice_count, attributes.memory_size_mb), (3, 40448));
        let memory = instance.memory_info().unwrap();
        assert_eq!((memory.total >> 20, memory.used >> 20, memory.reserved), (40448, 1024, 0));
        assert_eq!(instance.running_compute_processes().unwrap().len(), 1);
        assert_eq!(parent.running_compute_processes().unwrap()[0].gpu_instance_id, Some(2));
        assert!(matches!(instance.power_usage(), Err(NvmlError::InvalidArg)));

        assert!(matches!(parent.utilization_rates(), Err(NvmlError::NotSupported)));
        assert!(matches!(parent.samples(Sampling::GpuUtilization, 0), Err(NvmlError::NotSupported)));
        assert!(matches!(parent.process_utilization_stats(0), Err(NvmlError::NotSupported)));
        assert!(matches!(parent.encoder_utilization(), Err(NvmlError::NotSupported)));
        let fields = parent.field_values_for(&[FieldId(138), FieldId(143), FieldId(82)]).unwrap();
        let is_told: Vec<bool> = fields.iter().map(|field| field.as_ref().unwrap().value.is_ok()).collect();
        assert_eq!(is_told, [false, false, true]);
        assert!(parent.power_usage().unwrap() > whole.power_usage().unwrap());

        let activity = |gi: u32, metric| {
            let earlier = parent.gpm_mig_sample(gi).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            let later = parent.gpm_mig_sample(gi).unwrap();
            gpm_metrics_get(&nvml, &earlier, &later, &[metric]).unwrap().remove(0).map(|metric| metric.value)
        };
        assert!((activity(7, GpmMetricId::GraphicsUtil).unwrap() - 40.0).abs() < 0.1);
        assert!((activity(2, GpmMetricId::GraphicsUtil).unwrap() - 70.0).abs() < 0.1);
        assert!(activity(2, GpmMetricId::PcieTxPerSec).is_err());
        assert!(matches!(parent.gpm_mig_sample(1), Err(NvmlError::InvalidArg)));

        // Cut anew: the handle is of no use any more.
        let other = CUT
            .replace("{profile: 3g.40gb, gi: 2, slot: 5, uuid: MIG-a", "{profile: 2g.20gb, gi: 2, slot: 5");
        std::fs::write(path, other).unwrap();
        until("the old handle to be no good", || {
            instance.uuid().err().filter(|error| matches!(error, NvmlError::InvalidArg))
        });
        assert!(parent.mig_device_by_index(5).unwrap().name().unwrap().ends_with(" MIG 2g.20gb"));
    });
}
