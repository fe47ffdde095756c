//! Finds the pod of a process, by `/proc/<pid>` and the log folders' names. Asked by the NVML thread
//! alone.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cgroup::{self, Place, PodCgroup};
use super::pod_names::{Name, PodNames};
use super::{Owner, Unavailable, Whose};

/// What names the host's PID namespace. Only a member of it is told of all GPU processes.
const HOST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// The first letters of the MPS server's name: the kernel keeps 15.
const MPS_SERVER: &str = "nvidia-cuda-mps";
/// Longest file of `/proc/<pid>` that is read, bytes.
const MAX_FILE: u64 = 16 * 1024;
/// Most pids that are remembered.
const MAX_PIDS: usize = 8192;
/// A pid that nobody asked for in so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);
/// Lists of running processes are read every second: a pid that was in none for so long has ended.
const LISTED_WITHIN: Duration = Duration::from_secs(3);

/// A process as `/proc` and the log folders show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) whose: Whose,
    /// It is called like the MPS server. Any process may be.
    pub(crate) named_mps: bool,
}

/// The pods of pids.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    procfs: PathBuf,
    names: PodNames,
    known: HashMap<u32, Known>,
    /// Whether the last look at the namespace found another than the host's; logged once.
    foreign: bool,
    unreadable_logged: bool,
}

#[derive(Debug)]
struct Known {
    /// Clock ticks since boot at which it started: another one is another process. `None`: NVML
    /// lists it, and `/proc` does not show it.
    started: Option<u64>,
    process: Process,
    asked_at: Instant,
    /// When NVML last listed it as running.
    listed_at: Option<Instant>,
}

// === impl ProcessTable ===

impl ProcessTable {
    pub(crate) fn new(procfs: PathBuf, names: PodNames) -> Self {
        Self { procfs, names, known: HashMap::new(), foreign: false, unreadable_logged: false }
    }

    /// Why no pid can be attributed here; `None` if they can.
    pub(crate) fn unavailable(&mut self) -> Option<Unavailable> {
        let link = self.procfs.join("self/ns/pid");
        let found = std::fs::read_link(&link);
        let is_host = found.as_ref().is_ok_and(|target| target.as_os_str() == HOST_PID_NAMESPACE);
        if !is_host && !self.foreign {
            tracing::warn!(
                "{} is {}, not the host's {HOST_PID_NAMESPACE}: NVML hides other namespaces' processes, so shared GPUs are not divided among pods (set hostPID: true, or see --path.procfs)",
                link.display(),
                found.map_or_else(|error| error.to_string(), |target| target.display().to_string()),
            );
        }
        self.foreign = !is_host;
        self.foreign.then_some(Unavailable::NoHostPidNamespace)
    }

    /// A process that NVML lists as running. Second: whether this is news.
    pub(crate) fn listed(&mut self, pid: u32, now: Instant) -> (Process, bool) {
        let (process, is_news) = match self.look_up(pid, now) {
            Some(found) => found,
            // It runs and cannot be seen; or it has ended since, which the next lists tell.
            None => {
                let unseen = Process { whose: Whose::Unreadable, named_mps: false };
                self.keep(pid, None, &unseen, now);
                (unseen, false)
            }
        };
        if let Some(known) = self.known.get_mut(&pid) {
            known.listed_at = Some(now);
        }
        (process, is_news)
    }

    /// A process of which NVML has a sample, as it was when it was last looked up. One that was never
    /// listed and is not in `/proc` has ended before anybody could look.
    pub(crate) fn sampled(&mut self, pid: u32, now: Instant) -> Process {
        if let Some(known) = self.known.get_mut(&pid) {
            known.asked_at = now;
            return known.process.clone();
        }
        self.look_up(pid, now)
            .map_or(Process { whose: Whose::Gone, named_mps: false }, |(process, _)| process)
    }

    /// Drops pids that are long gone, and those of which nothing was seen as soon as they have ended.
    pub(crate) fn forget(&mut self, now: Instant) {
        let since = |at: Instant| now.saturating_duration_since(at);
        self.known.retain(|_, known| {
            since(known.asked_at) < FORGOTTEN_AFTER
                && (known.process.whose != Whose::Unreadable
                    || known.listed_at.is_some_and(|at| since(at) < LISTED_WITHIN))
        });
    }

    /// The process as `/proc` shows it, or showed it before it ended; `None` if it never did.
    fn look_up(&mut self, pid: u32, now: Instant) -> Option<(Process, bool)> {
        let folder = self.procfs.join(pid.to_string());
        let Some((comm, started)) = stat(&folder.join("stat")) else {
            // It ended; what is known of it applies to what it used before.
            let known = self.known.get_mut(&pid)?;
            known.asked_at = now;
            return Some((known.process.clone(), false));
        };
        let before = self.known.get(&pid).filter(|known| known.started == Some(started));
        if let Some(known) = before
            && known.process.whose != Whose::Unreadable
            && !lacks_container(&known.process.whose)
        {
            let process = known.process.clone();
            self.keep(pid, Some(started), &process, now);
            return Some((process, false));
        }
        let is_news = before.is_none();
        let whose = self.by_cgroup(&folder, now)?;
        let process = Process { whose, named_mps: comm == MPS_SERVER };
        self.keep(pid, Some(started), &process, now);
        Some((process, is_news))
    }

    fn keep(&mut self, pid: u32, started: Option<u64>, process: &Process, now: Instant) {
        if let Some(known) = self.known.get_mut(&pid) {
            (known.started, known.asked_at) = (started, now);
            known.process.clone_from(process);
        } else if self.known.len() < MAX_PIDS {
            let known = Known { started, process: process.clone(), asked_at: now, listed_at: None };
            self.known.insert(pid, known);
        }
    }

    /// `None` if the process has ended meanwhile.
    fn by_cgroup(&mut self, folder: &Path, now: Instant) -> Option<Whose> {
        let path = folder.join("cgroup");
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                if !std::mem::replace(&mut self.unreadable_logged, true) {
                    tracing::warn!(
                        "{}: {error}; the use of its process is attributed to no pod",
                        path.display()
                    );
                }
                return Some(Whose::Unreadable);
            }
        };
        Some(match cgroup::place(&text) {
            Place::Pods(pods) => self.known_pod(&pods, now),
            Place::Outside => Whose::Outside,
            Place::Unclear => Whose::Unreadable,
        })
    }

    /// The outermost pod that the kubelet's log folders know: inner names may be anybody's.
    fn known_pod(&mut self, pods: &[PodCgroup], now: Instant) -> Whose {
        for PodCgroup { uid, container } in pods {
            let (namespace, pod) = match self.names.pod(uid, now) {
                Name::Known(names) => names.clone(),
                Name::Missing => continue,
                // An inner name must not win because the outer pod is new. It is asked again.
                Name::Undecided => return Whose::Unreadable,
            };
            let id = container.as_deref();
            let container = id.and_then(|id| self.names.container(id, now));
            // A name of another pod is a log of before the container's id was used again.
            let container = container.filter(|known| (&known.0, &known.1) == (&namespace, &pod));
            let container = container.map(|known| known.2.clone()).unwrap_or_default();
            return Whose::Pod {
                owner: Arc::new(Owner { namespace, pod, container }),
                uid: uid.as_str().into(),
            };
        }
        for PodCgroup { uid, container } in pods {
            let Some(id) = container else { continue };
            if let Some((namespace, pod, container)) = self.names.container(id, now).cloned() {
                let owner = Arc::new(Owner { namespace, pod, container });
                return Whose::Pod { owner, uid: uid.as_str().into() };
            }
        }
        Whose::Unreadable
    }
}

/// The kubelet makes the link to a container's log a moment after the container: asked again.
fn lacks_container(whose: &Whose) -> bool {
    matches!(whose, Whose::Pod { owner, .. } if owner.container.is_empty())
}

/// Name and start time of a process.
fn stat(path: &Path) -> Option<(String, u64)> {
    let text = read(path).ok()?;
    // The name may hold blanks and parentheses: the last one closes it.
    let (head, rest) = text.rsplit_once(')')?;
    let comm = head.split_once('(')?.1.to_owned();
    // Field 22 of the line; the first after the name is field 3.
    let started = rest.split_whitespace().nth(22 - 3)?.parse().ok()?;
    Some((comm, started))
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f2e4a60-1111-4222-8333-444455556666";

    struct Host(tempfile::TempDir);

    impl Host {
        fn process(&self, pid: u32, comm: &str, started: u64, cgroup: &str) {
            let folder = self.0.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(&folder).unwrap();
            let zeros = " 0".repeat(17);
            std::fs::write(folder.join("stat"), format!("{pid} ({comm}) S 1{zeros} {started} 0\n")).unwrap();
            std::fs::write(folder.join("cgroup"), cgroup).unwrap();
        }

        fn table(&self) -> ProcessTable {
            let names = PodNames::new(self.0.path().join("pods"), self.0.path().join("containers"));
            ProcessTable::new(self.0.path().join("proc"), names)
        }
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let host = Host(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(host.0.path().join(format!("pods/ml_train_{UID}"))).unwrap();
        let mut table = host.table();
        let now = Instant::now();
        host.process(7, "a) (b", 100, &format!("0::/kubepods/pod{UID}/{}", "ab".repeat(32)));
        let (process, news) = table.listed(7, now);
        let Whose::Pod { owner, uid } = process.whose.clone() else { panic!("{process:?}") };
        assert_eq!((owner.pod.as_str(), owner.container.as_str(), &*uid, news), ("train", "", UID, true));
        host.process(7, "x", 200, "0::/system.slice/x.service");
        assert_eq!(table.listed(7, now), (of(Whose::Outside), true));
        // A process that ended keeps its owner for the slots it leaves behind.
        std::fs::remove_dir_all(host.0.path().join("proc/7")).unwrap();
        assert_eq!(table.listed(7, now), (of(Whose::Outside), false));
        assert_eq!(table.sampled(7, now), of(Whose::Outside));
        table.forget(now + FORGOTTEN_AFTER);
        assert_eq!(table.sampled(7, now), of(Whose::Gone));
    }

    #[test]
    fn a_process_that_nvml_lists_and_proc_hides_is_unreadable_and_one_that_ended_unseen_is_gone() {
        let host = Host(tempfile::tempdir().unwrap());
        let mut table = host.table();
        let now = Instant::now();
        assert_eq!(table.sampled(8, now), of(Whose::Gone));
        assert_eq!(table.listed(8, now), (of(Whose::Unreadable), false));
        assert_eq!(table.sampled(8, now), of(Whose::Unreadable));
        // Once no list has it any more it has ended.
        table.forget(now + LISTED_WITHIN);
        assert_eq!(table.sampled(8, now + LISTED_WITHIN), of(Whose::Gone));
    }

    #[test]
    fn the_outermost_pod_that_the_log_folders_know_is_the_processs() {
        const OTHER: &str = "11111111-1111-4222-8333-444455556666";
        const FOREIGN: &str = "22222222-1111-4222-8333-444455556666";
        let host = Host(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(host.0.path().join(format!("pods/ml_train_{UID}"))).unwrap();
        let mut table = host.table();
        let start = Instant::now();
        let pod = |table: &mut ProcessTable, pid, now| match table.listed(pid, now).0.whose {
            Whose::Pod { owner, .. } => owner.pod.clone(),
            other => format!("{other:?}"),
        };
        host.process(
            1,
            "x",
            1,
            &format!("0::/kubepods/pod{FOREIGN}/{}/kubepods/pod{UID}/x", "ab".repeat(32)),
        );
        assert_eq!(pod(&mut table, 1, start), "train", "a cluster in a pod of another one");
        // The attacker's pod is so new that the folder must be read again before anything is believed.
        std::fs::create_dir_all(host.0.path().join(format!("pods/ml_attacker_{OTHER}"))).unwrap();
        host.process(2, "x", 1, &format!("0::/kubepods/pod{OTHER}/x/pod{UID}/x"));
        let soon = start + Duration::from_millis(1);
        assert_eq!(pod(&mut table, 2, soon), "Unreadable");
        assert_eq!(pod(&mut table, 2, start + Duration::from_secs(1)), "attacker");
    }

    #[test]
    fn a_name_alone_is_marked_and_the_namespace_must_be_the_hosts() {
        let host = Host(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(host.0.path().join(format!("pods/ml_train_{UID}"))).unwrap();
        host.process(9, "nvidia-cuda-mps", 1, &format!("0::/kubepods/pod{UID}/x"));
        let mut table = host.table();
        let process = table.listed(9, Instant::now()).0;
        assert!(process.named_mps && matches!(process.whose, Whose::Pod { .. }), "{process:?}");
        assert_eq!(table.unavailable(), Some(Unavailable::NoHostPidNamespace));
        let ns = host.0.path().join("proc/self/ns");
        std::fs::create_dir_all(&ns).unwrap();
        std::os::unix::fs::symlink(HOST_PID_NAMESPACE, ns.join("pid")).unwrap();
        assert_eq!(table.unavailable(), None);
        // A pod without a name in any log folder is not known.
        host.process(10, "python3", 1, &format!("0::/kubepods/pod{}/x", UID.replace('0', "1")));
        assert_eq!(table.listed(10, Instant::now()).0, of(Whose::Unreadable));
    }

    fn of(whose: Whose) -> Process {
        Process { whose, named_mps: false }
    }
}
