//! Reads `/proc/<pid>/cgroup`: which pods and containers a path names, from the outermost in. Pure.
//!
//! A container may make cgroups of any name below its own, so an inner name proves nothing. The
//! caller takes the outermost pod that the kubelet's log folders know.

/// Length of a container id, hexadecimal digits.
const CONTAINER_ID_LENGTH: usize = 64;
/// Length of a UID with its dashes.
const UID_LENGTH: usize = 36;
/// Length of a static pod's UID: a hash without dashes.
const STATIC_UID_LENGTH: usize = 32;
/// Controllers whose path tells the pod under cgroup v1, the best first.
const CONTROLLERS: [&str; 3] = ["devices", "memory", "pids"];

/// Most pods of one path that are looked at: clusters in pods of clusters nest a few deep.
const MAX_NESTED: usize = 8;

/// What a cgroup file says of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Below cgroups that are named like pods, the outermost first; never empty.
    Pods(Vec<PodCgroup>),
    /// In no pod.
    Outside,
    /// Below the pods' cgroup, and yet no pod can be read off it.
    Unclear,
}

/// A cgroup that is named like a pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodCgroup {
    /// With dashes; without for a static pod.
    pub(crate) uid: String,
    /// The id of the outermost container below it, if the path has one.
    pub(crate) container: Option<String>,
}

/// Understands the file's text, of cgroup v1 or v2.
pub(crate) fn place(text: &str) -> Place {
    let lines = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2).map(|path| (line, path)));
    let of_controller = |controller: &str| {
        lines().find(|(line, _)| {
            line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == controller))
        })
    };
    // Version 2 has one line, without a controller.
    let preferred = CONTROLLERS.iter().filter_map(|controller| of_controller(controller)).chain(lines());
    let mut below_pods = false;
    for (_, path) in preferred {
        let pods: Vec<PodCgroup> = pods(path).take(MAX_NESTED).collect();
        if !pods.is_empty() {
            return Place::Pods(pods);
        }
        below_pods |= path.contains("kubepods");
    }
    if below_pods { Place::Unclear } else { Place::Outside }
}

/// Every `pod<uid>` of a path, in order.
fn pods(path: &str) -> impl Iterator<Item = PodCgroup> {
    path.match_indices("pod").filter_map(|(at, word)| {
        let rest = &path[at + word.len()..];
        [UID_LENGTH, STATIC_UID_LENGTH].into_iter().find_map(|length| {
            let uid = uid(rest.get(..length)?)?;
            let after = &rest[length..];
            // A longer run of digits would be another thing.
            (!after.starts_with(|c: char| c.is_ascii_alphanumeric()))
                .then(|| PodCgroup { uid, container: container(after) })
        })
    })
}

/// A UID in either length; systemd's slices write `_` for `-`.
fn uid(text: &str) -> Option<String> {
    let dashed = text.len() == UID_LENGTH;
    let fits = text.chars().enumerate().all(|(at, c)| match at {
        8 | 13 | 18 | 23 if dashed => c == '-' || c == '_',
        _ => c.is_ascii_hexdigit(),
    });
    fits.then(|| text.replace('_', "-").to_ascii_lowercase())
}

/// The first run of 64 hexadecimal digits: what runs in the container may have ids of its own.
fn container(path: &str) -> Option<String> {
    path.split(|c: char| !c.is_ascii_hexdigit())
        .find(|run| run.len() == CONTAINER_ID_LENGTH)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f2e4a60-1111-4222-8333-444455556666";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    fn id() -> String {
        "c0ffee".repeat(10) + "c0ff"
    }

    #[test]
    fn every_runtimes_form() {
        let (id, slice_uid) = (id(), UID.replace('-', "_"));
        let node = "ab".repeat(32);
        for (text, uid, container) in [
            (
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice_uid}.slice/cri-containerd-{id}.scope"
                ),
                UID,
                true,
            ),
            (format!("0::/kubepods.slice/kubepods-pod{slice_uid}.slice/crio-{id}.scope"), UID, true),
            (
                format!("0::/kubepods.slice/kubepods-pod{slice_uid}.slice/crio-{id}.scope/container"),
                UID,
                true,
            ),
            (
                format!(
                    "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice_uid}.slice/docker-{id}.scope"
                ),
                UID,
                true,
            ),
            (format!("0::/kubepods/burstable/pod{UID}/{id}"), UID, true),
            (format!("0::/kubepods/pod{UID}/crio-{id}"), UID, true),
            (
                format!("0::/system.slice/kubepods-burstable-pod{slice_uid}.slice:cri-containerd:{id}"),
                UID,
                true,
            ),
            (
                format!(
                    "0::/docker-{node}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{slice_uid}.slice/cri-containerd-{id}.scope"
                ),
                UID,
                true,
            ),
            (
                format!("0::/../../kubepods-burstable-pod{slice_uid}.slice/cri-containerd-{id}.scope"),
                UID,
                true,
            ),
            (format!("0::/kubepods/burstable/pod{STATIC}/{id}"), STATIC, true),
            (format!("0::/kubepods/burstable/pod{UID}"), UID, false),
            (
                format!(
                    "12:cpuset:/\n4:pids:/kubepods/pod{UID}/{id}\n3:memory:/kubepods/pod{UID}/{id}\n1:name=systemd:/x"
                ),
                UID,
                true,
            ),
            (
                format!("5:cpu,cpuacct:/kubepods/pod{UID}/{id}\n4:devices:/kubepods/pod{STATIC}/{id}"),
                STATIC,
                true,
            ),
        ] {
            let container = container.then(|| id.clone());
            let expected = Place::Pods(vec![PodCgroup { uid: uid.to_owned(), container }]);
            assert_eq!(place(&text), expected, "{text}");
        }
    }

    #[test]
    fn pods_within_pods_come_from_the_outside_in() {
        let (id, outer) = (id(), "ab".repeat(32));
        let pod = |uid: &str, container: &str| PodCgroup {
            uid: uid.to_owned(),
            container: Some(container.to_owned()),
        };
        // A cluster in a pod, and a container that named a cgroup after another pod.
        for between in ["kubelet/kubepods/", ""] {
            let text = format!("0::/kubepods/pod{STATIC}/{outer}/{between}pod{UID}/{id}");
            assert_eq!(place(&text), Place::Pods(vec![pod(STATIC, &outer), pod(UID, &id)]), "{text}");
        }
        // Docker in a pod: its containers are the pod's container.
        let text = format!("0::/kubepods/pod{UID}/{outer}/docker/{id}");
        assert_eq!(place(&text), Place::Pods(vec![pod(UID, &outer)]));
        let deep = format!("0::/kubepods{}", format!("/pod{UID}").repeat(100));
        assert!(matches!(place(&deep), Place::Pods(pods) if pods.len() == MAX_NESTED));
    }

    #[test]
    fn what_is_in_no_pod() {
        for text in
            ["0::/system.slice/python3.service", "0::/", "", "11:devices:/user.slice\n", "0::/podman-1/x"]
        {
            assert_eq!(place(text), Place::Outside, "{text}");
        }
        assert_eq!(place("0::/kubepods.slice/kubepods-podnonsense.slice"), Place::Unclear);
        assert_eq!(place(&format!("0::/kubepods/pod{UID}0/x")), Place::Unclear);
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,300}") {
            let _ = place(&text);
        }
    }
}
