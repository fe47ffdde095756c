//! Finds the pod that this exporter runs in. It only watches the GPUs, whatever it was given.

use std::path::Path;

use super::cgroup::{self, Place};
use super::pod_uid::PodUids;

/// Longest mount table that is read, bytes.
const MAX_MOUNTS: u64 = 1 << 20;

/// Namespace and name of a pod.
pub(crate) type PodName = (String, String);

/// The pod of this process: as the variables POD_NAMESPACE and POD_NAME say, else by the UID in its
/// own cgroup, else by the UID in the kubelet's mounts. `None` outside a pod.
pub(crate) fn find(procfs: &Path, uids: &PodUids) -> Option<PodName> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let (Some(namespace), Some(name)) = (variable("POD_NAMESPACE"), variable("POD_NAME")) {
        return Some((namespace, name));
    }
    let read = |file: &str| {
        use std::io::Read as _;
        let mut text = String::new();
        let file = std::fs::File::open(procfs.join("self").join(file)).ok()?;
        file.take(MAX_MOUNTS).read_to_string(&mut text).ok()?;
        Some(text)
    };
    let mut own: Vec<String> = match read("cgroup").map(|text| cgroup::place(&text)) {
        Some(Place::Pods(pods)) => pods.into_iter().map(|pod| pod.uid).collect(),
        _ => Vec::new(),
    };
    // In a cgroup namespace of its own the process sees only `/`.
    own.extend(read("mountinfo").as_deref().and_then(mounted_pod).map(str::to_owned));
    own.iter().find_map(|uid| uids.pod(uid)).cloned()
}

/// The UID in the folder of the kubelet's from which `/etc/hosts` is mounted:
/// `…/pods/<uid>/etc-hosts`.
fn mounted_pod(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (root, target) = (fields.nth(3)?, fields.next()?);
        let (before, _) = root.rsplit_once("/etc-hosts").filter(|_| target == "/etc/hosts")?;
        let (pods, uid) = before.rsplit_once('/')?;
        pods.ends_with("/pods").then_some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f2e4a60-1111-4222-8333-444455556666";

    #[test]
    fn by_cgroup_or_by_the_kubelets_mounts() {
        let root = tempfile::tempdir().unwrap();
        let path = |path: &str| root.path().join(path);
        std::fs::create_dir_all(path(&format!("pods/gpu-operator_exporter-x7_{UID}"))).unwrap();
        std::fs::create_dir_all(path("proc/self")).unwrap();
        let find = || {
            let mut uids = PodUids::new(path("pods"));
            uids.refresh();
            super::find(&path("proc"), &uids)
        };
        assert_eq!(find(), None);
        let mounts = format!(
            "610 604 0:52 / / rw - overlay overlay rw\n\
             700 610 8:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw,relatime - ext4 /dev/sda1 rw\n"
        );
        let own = Some(("gpu-operator".to_owned(), "exporter-x7".to_owned()));
        std::fs::write(path("proc/self/cgroup"), "0::/\n").unwrap();
        std::fs::write(path("proc/self/mountinfo"), mounts).unwrap();
        assert_eq!(find(), own);
        std::fs::remove_file(path("proc/self/mountinfo")).unwrap();
        assert_eq!(find(), None);
        std::fs::write(path("proc/self/cgroup"), format!("0::/kubepods/pod{UID}/{}\n", "ab".repeat(32)))
            .unwrap();
        assert_eq!(find(), own);
    }

    #[test]
    fn other_mounts_name_no_pod() {
        let line = |root: &str, target: &str| format!("1 2 8:1 {root} {target} rw - ext4 /dev/sda1 rw");
        assert_eq!(mounted_pod(&line("/var/lib/kubelet/pods/u/volumes/x/etc-hosts", "/etc/hosts")), None);
        assert_eq!(mounted_pod(&line("/var/lib/kubelet/pods/u/etc-hosts", "/host/etc/hosts")), None);
        assert_eq!(mounted_pod(&line("/var/lib/rancher/k3s/pods/u/etc-hosts", "/etc/hosts")), Some("u"));
        assert_eq!(mounted_pod("short"), None);
    }
}
