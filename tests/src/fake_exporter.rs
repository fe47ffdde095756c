//! Exporters that misbehave: a page of true counters, and every way not to serve it.
//!
//! Like podgauge's, they answer `?name[]=FAMILY` with those families alone, compressed if asked to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podgauge_sim::certs::{Leaf, roots};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

/// A pod on a GPU of its own, as the exporter tells of it.
#[derive(Debug, Clone)]
pub struct Told {
    pub uuid: String,
    pub pod: String,
    pub uid: String,
    /// Use of the GPU, percent.
    pub load: f64,
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Manner {
    /// The families that are asked for, compressed if that is accepted. Then the connection ends, though
    /// no header says so.
    Page,
    /// … and the connection stays.
    Keep,
    /// All of the page, with its length, whatever is asked for.
    Plain,
    /// This status to a query for families.
    NoQuery(u16),
    /// The page up to the middle of its last number, without a length.
    Cut,
    /// Half of the page, though its whole length is announced.
    Half,
    /// These bytes, head included, then the end.
    Raw(Vec<u8>),
    /// Chunks made of this text for ever; `#` stands for a number that counts.
    Endless(String),
    /// The page as it was when it was asked for, so much later.
    Late(Duration),
    /// A byte of the page ten times a second.
    Trickle,
    /// Nothing, for ever.
    Silent,
    /// 401 without this `Authorization`.
    Wants(String),
}

/// A running fake exporter. It stops when this is dropped.
#[derive(Debug)]
pub struct FakeExporter {
    pub address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

struct State {
    page: Mutex<PageMaker>,
    manner: Mutex<Manner>,
    /// Heads of the requests that came, in lower case.
    heads: Mutex<Vec<String>>,
    connections: Mutex<usize>,
    sent: Mutex<u64>,
}

/// How a page is written in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    AsAsked,
    Plain,
}

/// Makes a page for the request with this head.
type PageMaker = Box<dyn FnMut(&str) -> String + Send>;

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("manner", &self.manner).finish_non_exhaustive()
    }
}

/// TLS with this certificate; clients must show one of that authority, if any is named.
#[derive(Debug)]
pub struct FakeTls<'a> {
    pub leaf: &'a Leaf,
    pub client_authority: Option<&'a str>,
}

impl FakeExporter {
    pub async fn start(told: Vec<Told>) -> Self {
        Self::serve(steady(told), None).await
    }

    /// Its page is made by `page` for each request.
    pub async fn start_with(mut page: impl FnMut() -> String + Send + 'static) -> Self {
        Self::serve(Box::new(move |_| page()), None).await
    }

    /// As [`start_with`](Self::start_with); `page` is given the request's head.
    pub async fn start_for(page: impl FnMut(&str) -> String + Send + 'static) -> Self {
        Self::serve(Box::new(page), None).await
    }

    pub async fn start_tls(told: Vec<Told>, tls: FakeTls<'_>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match tls.client_authority {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let roots = Arc::new(roots(pem).unwrap());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (chain, key) = tls.leaf.for_rustls().unwrap();
        let config = builder.with_single_cert(chain, key).unwrap();
        Self::serve(steady(told), Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(page: PageMaker, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            page: Mutex::new(page),
            manner: Mutex::new(Manner::Page),
            heads: Mutex::default(),
            connections: Mutex::default(),
            sent: Mutex::default(),
        });
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (Arc::clone(&serving), tls.clone());
                *state.connections.lock() += 1;
                tokio::spawn(async move {
                    let done = match tls {
                        None => state.answer(stream).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => state.answer(stream).await,
                            Err(error) => Err(error),
                        },
                    };
                    // Clients go away; that is what is tested.
                    drop(done);
                });
            }
        });
        Self { address, state, task: task.abort_handle() }
    }

    /// How the next requests are answered.
    pub fn behave(&self, manner: Manner) {
        *self.state.manner.lock() = manner;
    }

    /// What the page tells from now on.
    pub fn tell(&self, told: Vec<Told>) {
        *self.state.page.lock() = steady(told);
    }

    /// Requests that came so far.
    pub fn requests(&self) -> usize {
        self.state.heads.lock().len()
    }

    /// Connections that came so far.
    pub fn connections(&self) -> usize {
        *self.state.connections.lock()
    }

    /// The heads of all requests, in lower case.
    pub fn heads(&self) -> Vec<String> {
        self.state.heads.lock().clone()
    }

    /// The newest request's head, in lower case.
    pub fn last_head(&self) -> String {
        self.state.heads.lock().last().cloned().unwrap_or_default()
    }

    /// Bytes of answers that went out.
    pub fn sent(&self) -> u64 {
        *self.state.sent.lock()
    }
}

impl Drop for FakeExporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    async fn answer(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        while self.answer_one(&mut stream).await? {}
        stream.shutdown().await
    }

    /// Answers one request; whether the connection stays.
    async fn answer_one(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<bool> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(false);
            }
            // A TLS record is no request.
            if head[0] == 0x16 {
                self.send(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
                return Ok(false);
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        self.heads.lock().push(head.to_ascii_lowercase());
        let manner = self.manner.lock().clone();
        let page = (self.page.lock())(&head);
        let with_length = |page: &str| String::from_utf8(answer(&head, page, Form::Plain)).unwrap();
        let stays = matches!(manner, Manner::Keep);
        match manner {
            Manner::Page | Manner::Keep => {
                self.send(&mut stream, &answer(&head, &page, Form::AsAsked)).await?;
            }
            Manner::NoQuery(status) if head.contains("name[]=") => {
                let refusal = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
                self.send(&mut stream, refusal.as_bytes()).await?;
            }
            Manner::Plain | Manner::NoQuery(_) => {
                self.send(&mut stream, with_length(&page).as_bytes()).await?;
            }
            Manner::Late(delay) => {
                tokio::time::sleep(delay).await;
                self.send(&mut stream, with_length(&page).as_bytes()).await?;
            }
            Manner::Cut => {
                let page = format!("HTTP/1.1 200 OK\r\n\r\n{page}");
                self.send(&mut stream, &page.as_bytes()[..page.len() - 4]).await?;
            }
            Manner::Half => {
                let whole = with_length(&page);
                self.send(&mut stream, &whole.as_bytes()[..whole.len() - page.len() / 2]).await?;
            }
            Manner::Raw(bytes) => self.send(&mut stream, &bytes).await?,
            Manner::Endless(text) => {
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                self.send(&mut stream, head).await?;
                let fixed = (!text.contains('#')).then(|| text.repeat((64 << 10) / text.len()));
                for number in 0u64.. {
                    let next = |i: u64| text.replace('#', &(100 * number + i).to_string());
                    let text = fixed.clone().unwrap_or_else(|| (0..100).map(next).collect());
                    self.send(&mut stream, format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await?;
                }
            }
            Manner::Trickle => {
                for byte in with_length(&page).into_bytes() {
                    self.send(&mut stream, &[byte]).await?;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Manner::Silent => std::future::pending().await,
            Manner::Wants(authorization) => {
                if head.contains(&format!("authorization: {authorization}")) {
                    self.send(&mut stream, &answer(&head, &page, Form::AsAsked)).await?;
                } else {
                    self.send(&mut stream, b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await?;
                }
            }
        }
        Ok(stays)
    }

    async fn send(&self, stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
        stream.write_all(bytes).await?;
        stream.flush().await?;
        *self.sent.lock() += bytes.len() as u64;
        Ok(())
    }
}

/// The answer to a request with this head.
fn answer(head: &str, page: &str, form: Form) -> Vec<u8> {
    let target = head.split(' ').nth(1).unwrap_or_default();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let names: Vec<&str> = query.split('&').filter_map(|part| part.strip_prefix("name[]=")).collect();
    let asked = |line: &&str| {
        let name = line.strip_prefix("# TYPE ").or(line.strip_prefix("# HELP ")).unwrap_or(line);
        names.contains(&name.split([' ', '{']).next().unwrap_or_default())
    };
    let as_asked = form == Form::AsAsked;
    let page: String = match as_asked && !names.is_empty() {
        true => page.lines().filter(asked).flat_map(|line| [line, "\n"]).collect(),
        false => page.to_owned(),
    };
    let gzip = as_asked && head.to_ascii_lowercase().contains("accept-encoding: gzip");
    let (coding, body) = match gzip {
        true => {
            ("Content-Encoding: gzip\r\n", podgauge_common::http::gzip::compress(page.as_bytes()).to_vec())
        }
        false => ("", page.into_bytes()),
    };
    let head = format!("HTTP/1.1 200 OK\r\n{coding}Content-Length: {}\r\n\r\n", body.len());
    [head.into_bytes(), body].concat()
}

/// The window that steady pages sum up.
pub const STEADY_WINDOW: f64 = 10.0;

/// The pages of loads that never change, with their sums of the last seconds.
fn steady(told: Vec<Told>) -> PageMaker {
    let began = Instant::now();
    Box::new(move |_| {
        let observed = 1000.0 + began.elapsed().as_secs_f64();
        let counted: Vec<Counted<'_>> = told
            .iter()
            .map(|told| Counted {
                told,
                active: observed * told.load / 100.0,
                observed,
                sums: Some(Sums {
                    window: STEADY_WINDOW,
                    active: STEADY_WINDOW * told.load / 100.0,
                    observed: STEADY_WINDOW,
                }),
            })
            .collect();
        page(&counted)
    })
}

/// podgauge-exporter's counts for a pod on a GPU of its own, seconds.
#[derive(Debug, Clone, Copy)]
pub struct Counted<'a> {
    pub told: &'a Told,
    pub active: f64,
    pub observed: f64,
    /// Of the last seconds.
    pub sums: Option<Sums>,
}

#[derive(Debug, Clone, Copy)]
pub struct Sums {
    pub window: f64,
    pub active: f64,
    pub observed: f64,
}

/// A page of podgauge-exporter's own families.
pub fn page(counted: &[Counted<'_>]) -> String {
    let mut families: BTreeMap<&str, String> = BTreeMap::new();
    for Counted { told: Told { uuid, pod, uid, .. }, active, observed, sums } in counted {
        let device = format!("gpu=\"0\",UUID=\"{uuid}\"");
        let owner = format!("{device},namespace=\"demo\",pod=\"{pod}\",container=\"main\"");
        let mut write = |family: &'static str, labels: &str, value: f64| {
            let text = families.entry(family).or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{family}{{{labels}}} {value:.6}");
        };
        write("podgauge_gpu_active_seconds_total", &owner, *active);
        write("podgauge_gpu_observed_seconds_total", &owner, *observed);
        write("podgauge_gpu_device_active_seconds_total", &device, *active);
        write("podgauge_gpu_owners", &device, 1.0);
        write("podgauge_gpu_allocation", &format!("{owner},pod_uid=\"{uid}\""), 1.0);
        if let Some(Sums { window, active, observed }) = sums {
            let within = |labels: &str| format!("window=\"{window}s\",{labels}");
            write("podgauge_gpu_recent_active_seconds", &within(&owner), *active);
            write("podgauge_gpu_recent_observed_seconds", &within(&owner), *observed);
            write("podgauge_gpu_recent_device_active_seconds", &within(&device), *active);
            write("podgauge_gpu_recent_device_observed_seconds", &within(&device), *observed);
        }
    }
    families.into_values().collect()
}
