//! Causes of a kubelet that does not answer: each has its own text, in the log and on `/ready`.

use std::path::Path;

use podgauge_tests::node::Node;
use podgauge_tests::program::Exporter;
use tokio::net::UnixListener;

const POD: &str = "gpus: [{load: {constant: 50}}]\npods: [{name: a, containers: [{devices: [\"0\"]}]}]";

async fn asking(node: &Node, socket: &Path) -> Exporter {
    node.exporter_with(|command| node.in_kubernetes_at(command, socket)).await
}

/// The log line and `/ready` hold all these words.
async fn explained(node: &Node, socket: &Path, words: &[&str]) -> Exporter {
    let mut exporter = asking(node, socket).await;
    let line = exporter.program.logged(&format!("kubelet {}", socket.display())).await;
    for word in words {
        assert!(line.contains(word), "no {word:?} in {line:?}");
    }
    exporter.unready(words).await;
    exporter
}

#[tokio::test]
async fn a_socket_that_is_not_there_or_is_none_is_named_with_what_to_check() {
    let node = Node::new(POD);
    explained(&node, &node.path().join("none.sock"), &["no such file", "mounted"]).await;
    explained(&node, node.path(), &["a folder, not a socket", "kubelet.sock"]).await;
    explained(&node, &node.scenario(), &["a file, not a socket"]).await;
    let deserted = node.path().join("deserted.sock");
    drop(std::os::unix::net::UnixListener::bind(&deserted).unwrap());
    explained(&node, &deserted, &["nothing listens", "is the kubelet running"]).await;
}

#[tokio::test]
async fn a_socket_that_is_closed_at_once_is_not_the_kubelets() {
    let node = Node::new(POD);
    let socket = node.path().join("closing.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let closing = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    explained(&node, &socket, &["closed the connection", "--pod-resources-kubelet-socket"]).await;
    closing.abort();
}

#[tokio::test]
async fn a_url_of_the_socket_is_as_good_as_its_path() {
    let node = Node::new(POD);
    let _kubelet = node.kubelet().await;
    let url = format!("unix://{}", node.socket().display());
    let exporter = asking(&node, Path::new(&url)).await;
    exporter.until("the pod", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[("pod", "a")])).await;
    exporter.ready(200).await;
}
