//! Owns the file trees of a node that the exporter reads beside NVML: `/proc` with the cgroup of
//! each GPU process, `/var/log/pods` and `/var/log/containers`, as containerd and systemd leave
//! them.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::scenario::{Container, Pod, Process, Scenario};

/// Longest name of a process that the kernel keeps, bytes.
const COMM_LENGTH: usize = 15;
/// What names the host's PID namespace, as `/proc/self/ns/pid` links to it.
const HOST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// Clock ticks between the node's boot and the first processes.
const FIRST_START: u64 = 1_000;

/// The three folders, for `--path.procfs`, `--path.pod-logs` and `--path.container-logs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trees {
    pub procfs: PathBuf,
    pub pod_logs: PathBuf,
    pub container_logs: PathBuf,
}

/// What a path of a tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    File(String),
    Link(PathBuf),
}

/// Writes the trees below `root`, in `proc`, `pod-logs` and `container-logs`. Written again for
/// another scenario they lose what that one does not have; what did not change is not touched.
pub fn write(root: &Path, scenario: &Scenario) -> io::Result<Trees> {
    let root = std::path::absolute(root)?;
    let trees = Trees {
        procfs: root.join("proc"),
        pod_logs: root.join("pod-logs"),
        container_logs: root.join("container-logs"),
    };
    let mut entries = BTreeMap::new();
    for (owner, process) in scenario.all_processes() {
        add_process(&mut entries, &trees, owner, process);
    }
    for (index, gpu) in scenario.gpus.iter().enumerate() {
        let Some(server) = gpu.mps_server else { continue };
        if scenario.all_processes().all(|(_, process)| process.pid != server) {
            let process = Process {
                pid: server,
                gpu: index,
                gi: None,
                ci: 0,
                load: None,
                memory_mib: 0,
                memory_unavailable: false,
                comm: "nvidia-cuda-mps-server".into(),
            };
            add_process(&mut entries, &trees, None, &process);
        }
    }
    entries.insert(trees.procfs.join("self/ns/pid"), Entry::Link(HOST_PID_NAMESPACE.into()));
    for pod in &scenario.pods {
        for container in &pod.containers {
            add_logs(&mut entries, &trees, pod, container);
        }
    }
    for folder in [&trees.procfs, &trees.pod_logs, &trees.container_logs] {
        std::fs::create_dir_all(folder)?;
        remove_others(folder, &entries)?;
    }
    entries.iter().try_for_each(|(path, entry)| entry.write(path))?;
    Ok(trees)
}

fn add_process(
    entries: &mut BTreeMap<PathBuf, Entry>,
    trees: &Trees,
    owner: Option<(&Pod, &Container)>,
    process: &Process,
) {
    let folder = trees.procfs.join(process.pid.to_string());
    let cgroup = match owner {
        Some((pod, container)) => format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{}.scope",
            pod.uid().replace('-', "_"),
            container.id(pod)
        ),
        None => format!("/system.slice/{}.service", process.comm),
    };
    // Another process under the same pid has another start time.
    let start = cgroup.bytes().fold(FIRST_START + u64::from(process.pid), |hash, byte| {
        (hash.wrapping_mul(31) + u64::from(byte)) % 100_000_000
    });
    let comm: String = process.comm.chars().take(COMM_LENGTH).collect();
    let file = |content: String| Entry::File(content);
    entries.insert(folder.join("cgroup"), file(format!("0::{cgroup}\n")));
    entries.insert(folder.join("comm"), file(format!("{comm}\n")));
    entries.insert(folder.join("cmdline"), file(format!("{}\0", process.comm)));
    entries.insert(folder.join("stat"), file(stat(process.pid, &comm, start)));
}

/// The 52 fields of `/proc/<pid>/stat`; those that nobody reads here are 0.
fn stat(pid: u32, comm: &str, start: u64) -> String {
    const BEFORE_START: usize = 21 - 4;
    const AFTER_START: usize = 52 - 22;
    let zeros = |count: usize| " 0".repeat(count);
    format!("{pid} ({comm}) S 1{} {start}{}\n", zeros(BEFORE_START), zeros(AFTER_START))
}

fn add_logs(entries: &mut BTreeMap<PathBuf, Entry>, trees: &Trees, pod: &Pod, container: &Container) {
    let Pod { namespace, name, .. } = pod;
    let log =
        trees.pod_logs.join(format!("{namespace}_{name}_{}", pod.uid())).join(&container.name).join("0.log");
    let link = format!("{name}_{namespace}_{}-{}.log", container.name, container.id(pod));
    entries.insert(trees.container_logs.join(link), Entry::Link(log.clone()));
    entries.insert(log, Entry::File(String::new()));
}

/// Removes what is below a folder and neither an entry nor on the way to one.
fn remove_others(folder: &Path, entries: &BTreeMap<PathBuf, Entry>) -> io::Result<()> {
    for child in std::fs::read_dir(folder)? {
        let child = child?;
        let path = child.path();
        let wanted = entries.range(path.clone()..).next().is_some_and(|(entry, _)| entry.starts_with(&path));
        match (wanted, child.file_type()?.is_dir()) {
            (true, true) => remove_others(&path, entries)?,
            (true, false) => {}
            (false, true) => std::fs::remove_dir_all(&path)?,
            (false, false) => std::fs::remove_file(&path)?,
        }
    }
    Ok(())
}

impl Entry {
    fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match self {
            Self::Link(target) if std::fs::read_link(path).is_ok_and(|now| now == *target) => Ok(()),
            Self::Link(target) => replace(path, |new| symlink(target, new)),
            Self::File(text) if std::fs::read_to_string(path).is_ok_and(|now| now == *text) => Ok(()),
            Self::File(text) => replace(path, |new| std::fs::write(new, text)),
        }
    }
}

/// Puts something new in place at once: a reader sees the old or the new, never half of it.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    make(&new)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "11111111-2222-3333-4444-555555555555";

    fn scenario(processes: &str) -> Scenario {
        Scenario::parse(&format!(
            "gpus: [{{}}]\n\
             pods: [{{name: train, namespace: ml, uid: {UID}, containers: [{{name: main, processes: [{processes}]}}]}}]\n\
             processes: [{{pid: 9, gpu: 0, comm: x}}]"
        ))
        .unwrap()
    }

    #[test]
    fn a_pods_process_is_found_by_cgroup_and_its_pod_by_the_log_folders() {
        let root = tempfile::tempdir().unwrap();
        let trees = write(root.path(), &scenario("{pid: 7, gpu: 0}")).unwrap();
        let read = |path: &str| std::fs::read_to_string(trees.procfs.join(path)).unwrap();
        let cgroup = read("7/cgroup");
        let head = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod\
                    11111111_2222_3333_4444_555555555555.slice/cri-containerd-";
        let id = cgroup.strip_prefix(head).unwrap().strip_suffix(".scope\n").unwrap();
        assert_eq!(id.len(), 64);
        assert_eq!(read("9/cgroup"), "0::/system.slice/x.service\n");
        assert_eq!(read("7/comm"), "python3\n");
        let stat = read("7/stat");
        let fields: Vec<&str> = stat.split_whitespace().collect();
        assert_eq!(fields.len(), 52);
        assert!(fields[21].parse::<u64>().unwrap() > 0);
        let link = trees.container_logs.join(format!("train_ml_main-{id}.log"));
        let log = trees.pod_logs.join(format!("ml_train_{UID}/main/0.log"));
        assert_eq!(std::fs::read_link(link).unwrap(), log);
        assert!(log.is_file());
    }

    #[test]
    fn writing_again_removes_what_is_gone_and_leaves_the_rest_alone() {
        let root = tempfile::tempdir().unwrap();
        let trees = write(root.path(), &scenario("{pid: 7, gpu: 0}, {pid: 8, gpu: 0}")).unwrap();
        let kept = trees.procfs.join("8/cgroup");
        let before = std::fs::metadata(&kept).unwrap();
        write(root.path(), &scenario("{pid: 8, gpu: 0}")).unwrap();
        assert!(!trees.procfs.join("7").exists());
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(&kept).unwrap().ino(), before.ino());
        write(root.path(), &Scenario::parse("gpus: [{}]").unwrap()).unwrap();
        for folder in [&trees.pod_logs, &trees.container_logs] {
            assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
        }
    }
}
