//! The API server behind a proxy, as the environment of a kubeconfig says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use parking_lot::Mutex;
use podgauge_sim::apiserver::{
    ADAPTER_TOKEN, ADMIN_TOKEN, Access, ApiServer, ApiServerHandle, ApiServerOptions, Credentials, Rule, User,
};
use podgauge_tests::built;
use podgauge_tests::managed::Managed;
use podgauge_tests::node::Node;
use podgauge_tests::program::{Exporter, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// A proxy that makes tunnels, and remembers what it was asked for.
struct Proxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move { drop(tunnel(client, &seen).await) });
            }
        });
        Self { address, heads }
    }

    /// `CONNECT` requests so far.
    fn tunnels(&self) -> usize {
        self.heads.lock().iter().filter(|head| head.starts_with("CONNECT ")).count()
    }
}

async fn tunnel(mut client: TcpStream, heads: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    heads.lock().push(head);
    let mut server = TcpStream::connect(target).await?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// An API server with the exporter's counters in a ConfigMap, and who may read it.
async fn api_server() -> ApiServerHandle {
    let server = ApiServer::start(ApiServerOptions::default()).await.unwrap();
    server.extend_access(Access {
        tokens: BTreeMap::from([("reader".to_owned(), User::of_groups("reader", &[]))]),
        rules: vec![Rule {
            users: vec!["reader".to_owned()],
            verbs: vec!["get".to_owned()],
            groups: vec![String::new()],
            resources: vec!["configmaps".to_owned()],
            namespaces: vec!["gpu".to_owned()],
            ..Rule::default()
        }],
    });
    let counters = BTreeMap::from([("metrics".to_owned(), "DCGM_FI_DEV_GPU_TEMP, gauge, x\n".to_owned())]);
    server.set_config_map("gpu", "metrics-map", Some(counters));
    server
}

async fn exporter(node: &Node, server: &ApiServerHandle, environment: &[(&str, &str)]) -> Exporter {
    let kubeconfig = node.path().join("exporter.kubeconfig");
    server.write_kubeconfig(&kubeconfig, &Credentials::Token("reader".to_owned())).unwrap();
    let exporter = node
        .exporter_with(|command| {
            for name in ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"] {
                command.env_remove(name);
            }
            command.envs(environment.iter().copied());
            command.args(["-m", "gpu:metrics-map", "--kubeconfig"]).arg(&kubeconfig);
        })
        .await;
    exporter.until("the counters of the ConfigMap", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[])).await;
    exporter
}

#[tokio::test]
async fn the_exporter_reaches_the_api_server_through_the_proxy() {
    let (node, server, proxy) = (Node::new("gpus: [{}]"), api_server().await, Proxy::start().await);
    let url = format!("http://user:p%40ss@{}", proxy.address);
    exporter(&node, &server, &[("HTTPS_PROXY", &url)]).await;
    let heads = proxy.heads.lock().clone();
    assert!(heads.iter().any(|head| head.contains("Basic dXNlcjpwQHNz")), "{heads:?}");
}

/// `NO_PROXY` is compared with the API server's host, not with the proxy's.
#[tokio::test]
async fn no_proxy_is_about_the_api_server() {
    let (node, server, proxy) = (Node::new("gpus: [{}]"), api_server().await, Proxy::start().await);
    let by_name = format!("http://localhost:{}", proxy.address.port());
    for aside in ["localhost", "a.example, 10.0.0.0/8"] {
        let before = proxy.tunnels();
        exporter(&node, &server, &[("https_proxy", &by_name), ("NO_PROXY", aside)]).await;
        assert!(proxy.tunnels() > before, "{aside}");
    }
    // Nothing listens on that port: a connection through it fails.
    for direct in ["127.0.0.1", "example.com, 127.0.0.0/8", "*"] {
        exporter(&node, &server, &[("HTTPS_PROXY", "http://127.0.0.1:1"), ("no_proxy", direct)]).await;
    }
}

#[tokio::test]
async fn the_adapter_reaches_the_api_server_through_the_proxy() {
    let (node, proxy) = (Node::new("gpus: [{}]"), Proxy::start().await);
    let server = ApiServer::start(ApiServerOptions::default()).await.unwrap();
    let kubeconfig = node.path().join("adapter.kubeconfig");
    server.write_kubeconfig(&kubeconfig, &Credentials::Token(ADAPTER_TOKEN.to_owned())).unwrap();
    let adapter = Managed::start_with(&kubeconfig, &[], |command| {
        command
            .env("HTTPS_PROXY", format!("http://{}", proxy.address))
            .env_remove("https_proxy")
            .env_remove("NO_PROXY")
            .env_remove("no_proxy");
    })
    .await;
    adapter.ready().await;
    assert!(proxy.tunnels() > 0, "{}", adapter.program.log());
}

#[tokio::test]
async fn explain_takes_the_proxy_of_its_kubeconfig_or_else_of_the_environment() {
    let (node, server, proxy) = (Node::new("gpus: [{}]"), api_server().await, Proxy::start().await);
    let kubeconfig = node.path().join("explain.kubeconfig");
    server.write_kubeconfig(&kubeconfig, &Credentials::Token(ADMIN_TOKEN.to_owned())).unwrap();
    let plain = std::fs::read_to_string(&kubeconfig).unwrap();
    let url = format!("http://{}", proxy.address);
    let named = plain.replace("\n    server: ", &format!("\n    proxy-url: {url}\n    server: "));
    assert_ne!(named, plain);
    // Nothing listens on port 1.
    for (text, environment) in [(&named, "http://127.0.0.1:1"), (&plain, url.as_str())] {
        std::fs::write(&kubeconfig, text).unwrap();
        let before = proxy.tunnels();
        let mut explain = Command::new(built("podgauge-adapter"));
        for name in ["https_proxy", "NO_PROXY", "no_proxy"] {
            explain.env_remove(name);
        }
        explain.env("HTTPS_PROXY", environment);
        explain
            .args(["explain", "pods", "demo", "app=x", "gpu_utilization", "--kubeconfig"])
            .arg(&kubeconfig);
        let output = tokio::task::spawn_blocking(move || run(&mut explain)).await.unwrap();
        assert!(proxy.tunnels() > before, "{}", String::from_utf8_lossy(&output.stderr));
    }
}
