//! Counters files as they are in the world: of other versions of DCGM, and of people's editors.

use podgauge_common::catalogue::base_units::RENAMED;
use podgauge_tests::checkout;
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::Exporter;

const NODE: &str = "gpus: [{load: {constant: 30}}]";

async fn with(node: &Node, content: impl AsRef<[u8]>) -> Exporter {
    let file = node.path().join("counters.csv");
    std::fs::write(&file, content).unwrap();
    node.exporter_with(|command| {
        command.arg("-f").arg(&file);
    })
    .await
}

fn dcgm(page: &Page) -> Vec<&str> {
    page.families().into_iter().filter(|name| name.starts_with("DCGM_")).collect()
}

/// Names of kinds that no list of this program has.
const OF_OTHER_HARDWARE: [&str; 14] = [
    "DCGM_FI_DEV_NVSWITCH_VOLTAGE_MVOLT",
    "DCGM_FI_DEV_NVSWITCH_LINK_THROUGHPUT_TX",
    "DCGM_FI_DEV_NVSWITCH_FATAL_ERRORS",
    "DCGM_FI_DEV_NVSWITCH_SXID_ERROR",
    "DCGM_FI_DEV_FIRST_NVSWITCH_FIELD_ID",
    "DCGM_FI_DEV_CONNECTX_HEALTH_2",
    "DCGM_FI_DEV_NVLINK_FEC_HISTORY_15",
    "DCGM_FI_DEV_SUPPORTED_TYPE_INFO",
    "DCGM_FI_DEV_CREATABLE_VGPU_TYPE_IDS",
    "DCGM_FI_DEV_VGPU_INSTANCE_IDS",
    "DCGM_FI_DEV_VGPU_FB_USED_BYTES",
    "DCGM_FI_SYNC_BOOST",
    "DCGM_FI_GPU_TOPOLOGY_NVLINK",
    "DCGM_EXP_SOMETHING_NEW_TOTAL",
];

#[tokio::test]
async fn every_name_of_dcgm_4_6_and_4_9_in_one_file_starts_with_warnings() {
    let names = std::fs::read_to_string(checkout("common/src/catalogue/dcgm_names.txt")).unwrap();
    let of_4_6: Vec<&str> = names
        .lines()
        .flat_map(|line| line.split(' ').skip(1))
        .filter(|name| name.starts_with("DCGM_"))
        .collect();
    assert!(of_4_6.len() > 800, "{}", of_4_6.len());
    let of_4_9 = RENAMED.iter().map(|renamed| renamed.name);
    let lines: Vec<String> = of_4_6
        .into_iter()
        .chain(of_4_9)
        .chain(OF_OTHER_HARDWARE)
        .map(|name| format!("{name}, gauge, x\n"))
        .collect();
    let node = Node::new(NODE);
    let exporter = with(&node, lines.concat()).await;
    let page = exporter
        .until("values of both", |page| {
            page.want("DCGM_FI_DEV_GPU_UTIL_RATIO", &[])?;
            page.want("DCGM_FI_DEV_GPU_UTIL", &[]).map(|_| page.clone())
        })
        .await;
    let (percent, ratio) = (
        page.value("DCGM_FI_DEV_GPU_UTIL", &[]).unwrap(),
        page.value("DCGM_FI_DEV_GPU_UTIL_RATIO", &[]).unwrap(),
    );
    assert!((percent - 30.0).abs() < 2.0 && (percent / 100.0 - ratio).abs() < 1e-6, "{percent} {ratio}");
    assert!(dcgm(&page).len() > 100);
    let log = exporter.program.log();
    assert_eq!(log.matches(" ERROR ").count(), 0, "{log}");
    // One line for what is not served or known, one for fields under two names; each is bounded.
    assert_eq!(log.matches("WARN").count(), 2, "{log}");
    assert!(log.contains("check the spelling: DCGM_FI_DEV_NVSWITCH_VOLTAGE_MVOLT"), "{log}");
    assert!(log.contains(" more") && log.lines().all(|line| line.len() < 8000), "{log}");
}

#[tokio::test]
async fn what_editors_make_of_a_file_is_read() {
    let node = Node::new(NODE);
    let mut content =
        b"\xef\xbb\xbf# a comment behind a byte order mark\r\n  # an indented one, with a comma\r\n".to_vec();
    content.extend(b"DCGM_FI_DEV_GPU_TEMP, gauge, \"Temperature\nof the GPU (in \xb0C)\"\r\n");
    content.extend(b"\tDCGM_FI_DEV_SM_CLOCK ,gauge,  a 5\" clock\r\n");
    let exporter = with(&node, content).await;
    let page = exporter
        .until("both", |page| {
            page.want("DCGM_FI_DEV_GPU_TEMP", &[])?;
            page.want("DCGM_FI_DEV_SM_CLOCK", &[]).map(|_| page.clone())
        })
        .await;
    assert!(
        page.text.contains("# HELP DCGM_FI_DEV_GPU_TEMP Temperature\\nof the GPU (in \u{b0}C)\n"),
        "{}",
        page.text
    );
    assert!(page.text.contains("# HELP DCGM_FI_DEV_SM_CLOCK a 5\" clock\n"), "{}", page.text);
    let log = exporter.program.log();
    assert_eq!((log.matches("WARN").count(), log.matches("read as Latin-1").count()), (1, 1), "{log}");
}

#[tokio::test]
async fn an_empty_file_is_one_warning() {
    for content in ["", "\n", "\u{feff}# nothing\n # at all\n"] {
        let node = Node::new(NODE);
        let exporter = with(&node, content).await;
        let page =
            exporter.until("a page", |page| page.want("podgauge_gpu_up", &[]).map(|_| page.clone())).await;
        assert_eq!(dcgm(&page), Vec::<&str>::new());
        let log = exporter.program.log();
        assert_eq!((log.matches("WARN").count(), log.matches("no field in it").count()), (1, 1), "{log}");
    }
}
