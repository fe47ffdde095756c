//! Reads the part of a GPU that a fractional scheduler gave to a pod, from the pod's annotations.
//!
//! | annotation | written by | form |
//! |---|---|---|
//! | `gpu-fraction`, `gpu-memory`, `gpu-fraction-container-name` | users of KAI and run:ai | a number below 1; MiB; a name |
//! | `hami.io/vgpu-devices-allocated` | HAMi's scheduler | `UUID,type,MiB,cores:` per card, `;` after each container |
//! | `volcano.sh/vgpu-ids-new` | Volcano's scheduler | the same, with memory in a unit of its own |

use super::slim::{ContainerName, SlimPod};

const FRACTION: &str = "gpu-fraction";
const MEMORY: &str = "gpu-memory";
const FRACTION_CONTAINER: &str = "gpu-fraction-container-name";
const HAMI: &str = "hami.io/vgpu-devices-allocated";
const VOLCANO: &str = "volcano.sh/vgpu-ids-new";

/// Longest annotation that is read, bytes: 64 cards of 16 containers have half of it.
const MAX_BYTES: usize = 8 * 1024;
/// Most cards of one annotation.
const MAX_CARDS: usize = 128;
/// Longest UUID of a card, bytes. `GPU-` and 36 digits have 40.
const MAX_UUID: usize = 96;
/// Longest name of a container, as Kubernetes limits it.
const MAX_NAME: usize = 63;
/// HAMi's and Volcano's cores are percent of a card.
const ALL_CORES: f64 = 100.0;

/// The parts of GPUs that a pod's annotations state.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GpuGrant {
    /// A part of whichever device the container uses.
    pub fraction: Option<Fraction>,
    /// Parts of named cards.
    pub cards: Option<Cards>,
    /// Annotations that cannot be used.
    pub ignored: Vec<Ignored>,
}

/// A part of a device that the annotation does not name.
#[derive(Debug, Clone, PartialEq)]
pub struct Fraction {
    pub annotation: &'static str,
    pub size: Size,
    /// The container that was given it; empty if the pod lists none.
    pub container: Box<str>,
}

/// Parts of devices by UUID.
#[derive(Debug, Clone, PartialEq)]
pub struct Cards {
    pub annotation: &'static str,
    pub cards: Box<[Card]>,
}

/// One container's part of one card.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    pub uuid: Box<str>,
    /// The part is a MIG instance of the card; which one is not stated.
    pub instance: bool,
    pub size: Size,
}

/// The size of a part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// Of one.
    Part(f64),
    /// Of the device's memory.
    Mib(f64),
    /// Memory in a unit that the annotation does not state.
    UnknownUnit,
}

/// An annotation that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    pub annotation: &'static str,
    pub reason: Malformed,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("{0:?} is not a number above 0 and below 1")]
    Fraction(Box<str>),
    #[error("{0:?} is not a whole number of MiB above 0")]
    Memory(Box<str>),
    #[error("the pod has no container {0:?}")]
    Container(Box<str>),
    #[error("{FRACTION} is there too, and comes first")]
    Second,
    #[error("it names more than {MAX_CARDS} cards")]
    TooManyCards,
    #[error("{0:?} is not UUID,type,memory,cores")]
    Card(Box<str>),
    #[error("{0:?} is not the UUID of a card")]
    Uuid(Box<str>),
    #[error("{0:?} is not a memory size")]
    CardMemory(Box<str>),
    #[error("{0:?} is not a number of cores from 0 to 100")]
    Cores(Box<str>),
}

// === impl GpuGrant ===

impl GpuGrant {
    /// Reads a pod's annotations; `None` if it has none of these.
    pub fn of(pod: &SlimPod) -> Option<Box<Self>> {
        let annotations = pod.metadata.annotations.as_ref()?;
        let mut grant = Self::default();
        let mut read = |annotation: &'static str, parse: &mut dyn FnMut(&str) -> Result<(), Malformed>| {
            let Some(text) = annotations.get(annotation) else { return };
            let parsed = if text.len() > MAX_BYTES { Err(Malformed::TooLong) } else { parse(text.trim()) };
            if let Err(reason) = parsed {
                grant.ignored.push(Ignored { annotation, reason });
            }
        };
        let init = pod.spec.init_containers.as_deref().unwrap_or_default();
        let mut container =
            Ok(pod.spec.containers.first().map_or_else(Box::default, |first| Box::from(first.name.as_str())));
        read(FRACTION_CONTAINER, &mut |name| {
            let mut known = pod.spec.containers.iter().chain(init);
            match known.find(|container| container.name == name) {
                Some(found) => container = Ok(found.name.as_str().into()),
                // Which container has the part is unknown then, so that no device is given it.
                None => {
                    container = Err(());
                    return Err(Malformed::Container(quoted(name, MAX_NAME)));
                }
            }
            Ok(())
        });
        let mut size = None;
        read(FRACTION, &mut |text| {
            size = Some((FRACTION, fraction(text)?));
            Ok(())
        });
        read(MEMORY, &mut |text| match size {
            Some(_) => Err(Malformed::Second),
            None => {
                size = Some((MEMORY, memory(text)?));
                Ok(())
            }
        });
        let mut cards = None;
        read(HAMI, &mut |text| {
            cards = Some(Cards { annotation: HAMI, cards: parse_cards(text, pod, hami_size)? });
            Ok(())
        });
        read(VOLCANO, &mut |text| {
            if cards.is_none() {
                cards = Some(Cards { annotation: VOLCANO, cards: parse_cards(text, pod, volcano_size)? });
            }
            Ok(())
        });
        grant.fraction = size.zip(container.ok()).map(|((annotation, size), container)| Fraction {
            annotation,
            size,
            container,
        });
        grant.cards = cards.filter(|cards| !cards.cards.is_empty());
        (grant != Self::default()).then(|| Box::new(grant))
    }
}

// === impl Cards ===

impl Cards {
    /// The parts of the card with this UUID.
    pub fn of<'a>(&'a self, uuid: &'a str) -> impl Iterator<Item = &'a Card> {
        self.cards.iter().filter(move |card| *card.uuid == *uuid)
    }
}

fn fraction(text: &str) -> Result<Size, Malformed> {
    let part = text.parse().ok().filter(|part: &f64| *part > 0.0 && *part < 1.0);
    part.map(Size::Part).ok_or_else(|| Malformed::Fraction(quoted(text, MAX_NAME)))
}

fn memory(text: &str) -> Result<Size, Malformed> {
    let mib = text.parse::<u32>().ok().filter(|mib| *mib > 0);
    mib.map(|mib| Size::Mib(mib.into())).ok_or_else(|| Malformed::Memory(quoted(text, MAX_NAME)))
}

/// The cards of the containers that run as long as the pod.
fn parse_cards(text: &str, pod: &SlimPod, size: fn(u32, f64) -> Size) -> Result<Box<[Card]>, Malformed> {
    let text = text.strip_suffix(';').unwrap_or(text);
    let containers: Vec<&str> = text.split(';').collect();
    let init = pod.spec.init_containers.as_deref().unwrap_or_default();
    // One that lists every container begins with the init containers, of which all but the sidecars
    // have ended.
    let listed = containers.len() == init.len() + pod.spec.containers.len();
    let ended = |at: usize| listed && init.get(at).is_some_and(|init| !is_sidecar(init));
    let mut cards = Vec::new();
    for (at, container) in containers.into_iter().enumerate() {
        for card in container.split(':').filter(|card| !card.is_empty()) {
            let card = parse_card(card, size)?;
            if cards.len() == MAX_CARDS {
                return Err(Malformed::TooManyCards);
            }
            if !ended(at) {
                cards.push(card);
            }
        }
    }
    Ok(cards.into())
}

fn parse_card(text: &str, size: fn(u32, f64) -> Size) -> Result<Card, Malformed> {
    let fields: Vec<&str> = text.split(',').collect();
    let [uuid, _, memory, cores] = fields[..] else {
        return Err(Malformed::Card(quoted(text, MAX_UUID)));
    };
    // HAMi writes a MIG instance as its place in a template: `GPU-…[1-0]`.
    let (uuid, instance) = match uuid.split_once('[') {
        Some((uuid, place)) if place.ends_with(']') => (uuid, true),
        _ => (uuid, false),
    };
    let is_uuid = uuid.len() <= MAX_UUID
        && uuid.len() > 4
        && uuid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !is_uuid {
        return Err(Malformed::Uuid(quoted(uuid, MAX_UUID)));
    }
    let mib: u32 = memory.parse().map_err(|_| Malformed::CardMemory(quoted(memory, MAX_NAME)))?;
    let known_cores = cores.parse::<u32>().ok().map(f64::from).filter(|cores| *cores <= ALL_CORES);
    let cores = known_cores.ok_or_else(|| Malformed::Cores(quoted(cores, MAX_NAME)))?;
    Ok(Card { uuid: uuid.into(), instance, size: size(mib, cores) })
}

/// Cores, or where they are not limited, memory.
fn hami_size(mib: u32, cores: f64) -> Size {
    if cores > 0.0 { Size::Part(cores / ALL_CORES) } else { Size::Mib(mib.into()) }
}

/// Volcano counts memory in units of its plugin's `gpuMemoryFactor`, which no annotation states.
fn volcano_size(_: u32, cores: f64) -> Size {
    if cores > 0.0 { Size::Part(cores / ALL_CORES) } else { Size::UnknownUnit }
}

fn is_sidecar(init: &ContainerName) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// At most this many characters of a text, for a message.
fn quoted(text: &str, most: usize) -> Box<str> {
    text.chars().take(most).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(annotations: &serde_json::Value) -> SlimPod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": annotations},
            "spec": {
                "initContainers": [{"name": "load"}, {"name": "proxy", "restartPolicy": "Always"}],
                "containers": [{"name": "main"}, {"name": "side"}],
            },
        }))
        .unwrap()
    }

    fn grant(annotations: &serde_json::Value) -> GpuGrant {
        *GpuGrant::of(&pod(annotations)).unwrap()
    }

    #[test]
    fn a_pod_without_these_annotations_has_no_grant() {
        assert_eq!(GpuGrant::of(&SlimPod::default()), None);
        assert_eq!(GpuGrant::of(&pod(&json!({"team": "ml"}))), None);
        assert_eq!(GpuGrant::of(&pod(&json!({"hami.io/vgpu-devices-allocated": ";;"}))), None);
    }

    #[test]
    fn a_fraction_is_of_the_first_container_or_the_one_that_is_named() {
        let half = |container: &str| {
            Some(Fraction { annotation: FRACTION, size: Size::Part(0.5), container: container.into() })
        };
        assert_eq!(grant(&json!({"gpu-fraction": "0.5"})).fraction, half("main"));
        let named = |name: &str| grant(&json!({"gpu-fraction": "0.5", "gpu-fraction-container-name": name}));
        assert_eq!(named("proxy").fraction, half("proxy"));
        let unknown = named("nobody");
        assert_eq!(unknown.fraction, None);
        assert_eq!(unknown.ignored[0].reason.to_string(), "the pod has no container \"nobody\"");
        let memory = grant(&json!({"gpu-memory": "2000"})).fraction.unwrap();
        assert_eq!((memory.annotation, memory.size), (MEMORY, Size::Mib(2000.0)));
    }

    #[test]
    fn cards_are_of_the_containers_that_stay() {
        let of = |text: &str| {
            let cards = grant(&json!({"hami.io/vgpu-devices-allocated": text})).cards.unwrap().cards;
            cards.iter().map(|card| (card.uuid.to_string(), card.instance, card.size)).collect::<Vec<_>>()
        };
        let card = |uuid: &str, size| (uuid.to_owned(), false, size);
        // Init container, sidecar, then the two others.
        assert_eq!(
            of("GPU-a,NVIDIA,1000,90:;GPU-b,NVIDIA,1000,10:;GPU-c,NVIDIA,20000,0:GPU-d,NVIDIA,1,30:;;"),
            [
                card("GPU-b", Size::Part(0.1)),
                card("GPU-c", Size::Mib(20000.0)),
                card("GPU-d", Size::Part(0.3))
            ]
        );
        // Without places for init containers.
        assert_eq!(of("GPU-a,NVIDIA,1000,90:;"), [card("GPU-a", Size::Part(0.9))]);
        assert_eq!(of("GPU-a[1-0],NVIDIA,9856,0:;"), [("GPU-a".to_owned(), true, Size::Mib(9856.0))]);
    }

    #[test]
    fn volcanos_memory_has_an_unknown_unit() {
        let volcano = "GPU-a,NVIDIA,4000,25:;GPU-b,NVIDIA,4000,0:";
        let cards = grant(&json!({"volcano.sh/vgpu-ids-new": volcano})).cards.unwrap();
        let sizes: Vec<Size> = cards.cards.iter().map(|card| card.size).collect();
        assert_eq!((cards.annotation, &sizes[..]), (VOLCANO, &[Size::Part(0.25), Size::UnknownUnit][..]));
        assert_eq!(cards.of("GPU-b").count(), 1);
    }

    #[test]
    fn malformed_annotations_are_ignored_with_the_reason() {
        let long = "x".repeat(MAX_BYTES + 1);
        let many = "GPU-a,NVIDIA,1,1:".repeat(MAX_CARDS + 1);
        for (annotation, text, reason) in [
            (FRACTION, "1", "\"1\" is not a number above 0 and below 1"),
            (FRACTION, "NaN", "\"NaN\" is not a number above 0 and below 1"),
            (FRACTION, "half", "\"half\" is not a number above 0 and below 1"),
            (MEMORY, "2Gi", "\"2Gi\" is not a whole number of MiB above 0"),
            (MEMORY, "0", "\"0\" is not a whole number of MiB above 0"),
            (HAMI, "GPU-a", "\"GPU-a\" is not UUID,type,memory,cores"),
            (HAMI, "GPU-a,NVIDIA,x,1", "\"x\" is not a memory size"),
            (HAMI, "GPU-a,NVIDIA,1,-1", "\"-1\" is not a number of cores from 0 to 100"),
            (HAMI, "GPU-a,NVIDIA,1,101", "\"101\" is not a number of cores from 0 to 100"),
            (HAMI, "a b,NVIDIA,1,1", "\"a b\" is not the UUID of a card"),
            (VOLCANO, &long, "it is longer than 8192 bytes"),
            (HAMI, &many[..MAX_BYTES.min(many.len())], "it names more than 128 cards"),
        ] {
            let grant = grant(&json!({annotation: text}));
            assert_eq!((&grant.fraction, &grant.cards), (&None, &None), "{text}");
            assert_eq!(grant.ignored.len(), 1, "{text}");
            assert_eq!(grant.ignored[0].reason.to_string(), reason);
        }
        let both = grant(&json!({"gpu-fraction": "0.5", "gpu-memory": "2000"}));
        assert_eq!((both.fraction.unwrap().annotation, both.ignored[0].annotation), (FRACTION, MEMORY));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[A-Za-z0-9,:;\\[\\]. -]{0,80}") {
            for annotation in [FRACTION, MEMORY, FRACTION_CONTAINER, HAMI, VOLCANO] {
                let _ = GpuGrant::of(&pod(&json!({annotation: text})));
            }
        }
    }
}
