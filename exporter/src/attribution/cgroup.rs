//! Owns the forms of `/proc/<pid>/cgroup`: which pod and which container a path means. Pure.

/// Length of a container id, hexadecimal digits.
const CONTAINER_ID_LENGTH: usize = 64;
/// Length of a UID with its dashes.
const UID_LENGTH: usize = 36;
/// Length of a static pod's UID: a hash without dashes.
const STATIC_UID_LENGTH: usize = 32;
/// Controllers whose path tells the pod under cgroup v1, the best first.
const CONTROLLERS: [&str; 3] = ["devices", "memory", "pids"];

/// What a cgroup file says of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a pod: its UID with dashes (without for a static pod), and the container's id if the path
    /// has one.
    Pod { uid: String, container: Option<String> },
    /// In no pod.
    Outside,
    /// Below the pods' cgroup, and yet no pod can be read off it.
    Unclear,
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
        if let Some((uid, rest)) = pod(path) {
            return Place::Pod { uid, container: container(rest) };
        }
        below_pods |= path.contains("kubepods");
    }
    if below_pods { Place::Unclear } else { Place::Outside }
}

/// The last `pod<uid>` of a path, since clusters nest, and what follows it.
fn pod(path: &str) -> Option<(String, &str)> {
    path.rmatch_indices("pod").find_map(|(at, word)| {
        let rest = &path[at + word.len()..];
        [UID_LENGTH, STATIC_UID_LENGTH].into_iter().find_map(|length| {
            let uid = uid(rest.get(..length)?)?;
            let after = &rest[length..];
            // A longer run of digits would be another thing.
            (!after.starts_with(|c: char| c.is_ascii_alphanumeric())).then_some((uid, after))
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

/// The last run of 64 hexadecimal digits.
fn container(path: &str) -> Option<String> {
    path.split(|c: char| !c.is_ascii_hexdigit())
        .rfind(|run| run.len() == CONTAINER_ID_LENGTH)
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
            // A cluster in a pod of another one: the inner pod.
            (format!("0::/kubepods/pod{STATIC}/{node}/kubelet/kubepods/pod{UID}/{id}"), UID, true),
        ] {
            let expected = Place::Pod { uid: uid.to_owned(), container: container.then(|| id.clone()) };
            assert_eq!(place(&text), expected, "{text}");
        }
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
