//! The page narrowed to the families that a scraper names.

use std::collections::BTreeMap;
use std::io::Read as _;

use http::{HeaderMap, header};
use podgauge_tests::client;
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::Exporter;
use podgauge_tests::wait::until;

/// Families that an adapter asks for, and one of the exporter's own.
const WANTED: [&str; 9] = [
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_FB_USED",
    "podgauge_gpu_active_seconds_total",
    "podgauge_gpu_observed_seconds_total",
    "podgauge_gpu_device_active_seconds_total",
    "podgauge_gpu_recent_active_seconds",
    "podgauge_gpu_allocation",
    "podgauge_gpu_owners",
    "podgauge_exporter_page_series",
];

fn node() -> Node {
    Node::new(
        "gpus: [{load: {constant: 40}}, {load: {constant: 60}}]\n\
         pods: [{name: a, containers: [{devices: [\"0\"]}]}, {name: b, containers: [{devices: [\"1\"]}]}]",
    )
}

fn query(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("name[]={name}")).collect();
    format!("/metrics?{}", names.join("&"))
}

/// By family: its HELP and TYPE lines, and its series without values.
fn families(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut families = BTreeMap::<String, Vec<String>>::new();
    for family in text.split("# HELP ").filter(|family| !family.is_empty()) {
        let name = family.split(' ').next().unwrap().to_owned();
        let bare = |line: &str| match line.rsplit_once(' ') {
            Some((series, _)) if line.starts_with(&name) && !line.starts_with(&format!("{name} ")) => {
                series.to_owned()
            }
            _ => line.to_owned(),
        };
        assert!(families.insert(name.clone(), family.lines().map(bare).collect()).is_none(), "{name} twice");
    }
    families
}

async fn text(exporter: &Exporter, path: &str) -> String {
    let answer = exporter.get(path).await;
    assert_eq!(answer.status(), 200, "{path}");
    assert!(answer.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/plain"));
    String::from_utf8(answer.body().to_vec()).unwrap()
}

/// Waits until the narrow page of a path has these families as the whole page has them.
async fn narrowed(exporter: &Exporter, path: &str, names: &[&str]) {
    until(&format!("{path} to be part of the page"), || async {
        let mut whole = families(&text(exporter, "/metrics").await);
        whole.retain(|name, _| names.contains(&name.as_str()));
        let narrow = families(&text(exporter, path).await);
        // A page may have been rendered between the two.
        if whole.len() == names.len() && narrow == whole {
            Ok(())
        } else {
            Err(format!("{narrow:#?}\n{whole:#?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_scraper_gets_the_families_that_it_names_as_they_are_on_the_whole_page() {
    let node = node();
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes_with_own_metrics().await;
    narrowed(&exporter, &query(&WANTED), &WANTED).await;
    narrowed(&exporter, &query(&WANTED).replace('[', "%5B").replace(']', "%5D"), &WANTED).await;
    // A name that is the beginning of another one, a name that nothing has, other parameters.
    let path =
        "/metrics?x=1&name[]=podgauge_gpu_up&name[]=podgauge_gpu&name[]=nothing&match[]=DCGM_FI_DEV_FB_USED";
    narrowed(&exporter, path, &["podgauge_gpu_up"]).await;
    assert_eq!(text(&exporter, "/metrics?name[]=nothing").await, "");
    // Without names it is the whole page.
    let whole = Page::parse(text(&exporter, "/metrics?name=podgauge_gpu_up&collect[]=x").await);
    assert!(whole.families().len() > 30, "{:?}", whole.families());
}

#[tokio::test]
async fn a_narrow_page_is_compressed_for_those_who_ask_and_its_values_move() {
    let node = node();
    let exporter = node.exporter().await;
    let names = ["podgauge_gpu_device_active_seconds_total", "DCGM_FI_DEV_GPU_UTIL"];
    exporter.until("values", |page| page.want(names[1], &[("gpu", "0")])).await;
    let mut asks = HeaderMap::new();
    asks.insert(header::ACCEPT_ENCODING, "gzip".parse().unwrap());
    let scrape = || async {
        let packed = client::get(&exporter.address, &query(&names), &asks).await.unwrap();
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
        assert_eq!(packed.headers()[header::VARY], "Accept-Encoding");
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed.body().as_ref()).read_to_string(&mut text).unwrap();
        Page::parse(text)
    };
    let first = scrape().await;
    assert_eq!(first.families(), ["DCGM_FI_DEV_GPU_UTIL", "podgauge_gpu_device_active_seconds_total"]);
    let seconds = |page: &Page| page.value(names[0], &[("gpu", "0")]).unwrap();
    until("the counter to grow", || async {
        let now = scrape().await;
        if seconds(&now) > seconds(&first) { Ok(()) } else { Err(now.text) }
    })
    .await;
}

#[tokio::test]
async fn names_are_bounded_and_too_many_selections_are_still_answered() {
    let node = node();
    let exporter = node.exporter().await;
    exporter.until("values", |page| page.want("podgauge_gpu_up", &[("gpu", "0")])).await;
    for (path, reason) in [
        (query(&["a"; 257]), "name[] is given more than 256 times"),
        (query(&["a".repeat(257).as_str()]), "a name[] is longer than 256 bytes"),
    ] {
        let refused = exporter.get(&path).await;
        assert_eq!(refused.status(), 400);
        assert_eq!(refused.body().trim_ascii_end(), reason.as_bytes());
    }
    for n in 0..40 {
        let page = text(&exporter, &format!("/metrics?name[]=podgauge_gpu_up&n={n}")).await;
        assert_eq!(Page::parse(page).families(), ["podgauge_gpu_up"]);
    }
}

/// Readers tell by it that every counter began again.
#[tokio::test]
async fn the_start_time_is_the_same_on_every_page_and_another_one_after_a_restart() {
    const START_TIME: &str = "podgauge_start_time_seconds";
    let node = node();
    let started = async |exporter: &Exporter| {
        exporter.until("a page", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("gpu", "0")])).await;
        let first = exporter.page().await.value(START_TIME, &[]).unwrap();
        exporter
            .until("another page", |page| {
                assert_eq!(page.value(START_TIME, &[]), Some(first));
                match page.want("podgauge_gpu_observed_seconds_total", &[("gpu", "0")])? {
                    2.0.. => Ok(()),
                    seconds => Err(format!("{seconds} s")),
                }
            })
            .await;
        let narrow = Page::parse(text(exporter, &query(&[START_TIME])).await);
        assert_eq!(narrow.value(START_TIME, &[]), Some(first));
        first
    };
    let first = started(&node.exporter().await).await;
    let second = started(&node.exporter().await).await;
    assert!(second > first, "{first} {second}");
}
