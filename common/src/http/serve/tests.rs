//! The server over real sockets.

use http::StatusCode;
use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::http::respond::text;
use crate::shutdown::{Trigger, channel};

/// Answers every request with these bytes.
struct Same(bytes::Bytes);

impl Handler for Same {
    async fn answer(self: Arc<Self>, _: Request, _: Arc<Peer>) -> Response {
        http::Response::new(Full::new(self.0.clone()))
    }

    fn trusts(&self, _: &[CertificateDer<'static>]) -> bool {
        false
    }

    fn overloaded(&self, reason: &str) -> Response {
        text(StatusCode::TOO_MANY_REQUESTS, reason)
    }
}

/// A running server.
struct Running {
    address: SocketAddr,
    limited: Arc<Limited>,
    trigger: Trigger,
    serving: tokio::task::JoinHandle<()>,
}

async fn server(limits: Limits) -> Running {
    server_of(limits, "ok".into()).await
}

async fn server_of(limits: Limits, answer: bytes::Bytes) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limited: Arc<Limited> = Arc::default();
    let (trigger, shutdown) = channel();
    let serving = serve(listener, None, limits, Arc::clone(&limited), Arc::new(Same(answer)), shutdown);
    Running { address, limited, trigger, serving: tokio::spawn(serving) }
}

fn short() -> Limits {
    let limit = Duration::from_millis(50);
    Limits { head: limit, idle: limit, ..Limits::default() }
}

/// Limits that no test reaches.
fn patient() -> Limits {
    let day = Duration::from_secs(86_400);
    Limits { head: day, unproven_head: day, idle: day, ..Limits::default() }
}

/// Reads until the server ends the connection.
async fn to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut read).await;
    read
}

async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer[..12].to_vec()).unwrap()
}

#[tokio::test]
async fn connections_that_say_nothing_give_their_places_back() {
    let running = server(Limits { connections: 2, reserved: 0, ..short() }).await;
    let mut silent = TcpStream::connect(running.address).await.unwrap();
    // The preface of HTTP/2 and nothing more.
    let mut idle = TcpStream::connect(running.address).await.unwrap();
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    assert!(to_end(&mut silent).await.is_empty());
    to_end(&mut idle).await;
    let mut third = TcpStream::connect(running.address).await.unwrap();
    third.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // And one that has asked may not stay for ever either.
    let answer = to_end(&mut third).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_newcomer_takes_the_place_of_the_longest_without_an_answer() {
    let running = server(Limits { connections: 3, reserved: 1, ..patient() }).await;
    let mut first = TcpStream::connect(running.address).await.unwrap();
    assert_eq!(ask(&mut first).await, "HTTP/1.1 200");
    let mut half_open = TcpStream::connect(running.address).await.unwrap();
    // Its place is taken once it is seen: what it sends is read.
    half_open.write_all(b"GET / HT").await.unwrap();
    ask(&mut first).await;
    let mut newcomer = TcpStream::connect(running.address).await.unwrap();
    assert_eq!(ask(&mut newcomer).await, "HTTP/1.1 200");
    assert!(to_end(&mut half_open).await.is_empty());
    assert_eq!(running.limited.each().next(), Some(("connections", 1)));
}

#[tokio::test]
async fn pipelined_requests_wait_for_their_answers_to_be_read() {
    // Answers without a body are only heads: nothing of them waits outside HTTP's own buffer.
    let running = server_of(patient(), bytes::Bytes::new()).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let requests = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let mut sent = 0;
    // Sent until the server takes no more, because nothing is read of what it answers.
    let stopped = async {
        while let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&requests)).await
        {
            sent += 1000;
            assert!(sent < 2_000_000, "the server takes requests without end");
        }
    };
    stopped.await;
}

#[tokio::test]
async fn connections_are_accepted_for_a_while_after_the_end_is_announced() {
    let day = Duration::from_secs(86_400);
    let running = server(Limits { shutdown_delay: day, ..patient() }).await;
    running.trigger.fire();
    let mut late = TcpStream::connect(running.address).await.unwrap();
    assert_eq!(ask(&mut late).await, "HTTP/1.1 200");
    running.serving.abort();
}

/// Answers once it may.
#[derive(Default)]
struct Waiting {
    asked: tokio::sync::Notify,
    may: tokio::sync::Notify,
}

impl Handler for Waiting {
    async fn answer(self: Arc<Self>, _: Request, _: Arc<Peer>) -> Response {
        self.asked.notify_one();
        self.may.notified().await;
        text(StatusCode::OK, "ok")
    }

    fn trusts(&self, _: &[CertificateDer<'static>]) -> bool {
        false
    }

    fn overloaded(&self, reason: &str) -> Response {
        text(StatusCode::TOO_MANY_REQUESTS, reason)
    }
}

#[tokio::test]
async fn an_open_request_is_answered_before_the_end_and_no_connection_is_accepted_meanwhile() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (handler, (trigger, shutdown)) = (Arc::<Waiting>::default(), channel());
    let limits = Limits { drain: Duration::from_secs(86_400), ..patient() };
    let serving = serve(listener, None, limits, Arc::default(), Arc::clone(&handler), shutdown);
    let serving = tokio::spawn(serving);
    let mut open = TcpStream::connect(address).await.unwrap();
    open.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    handler.asked.notified().await;
    trigger.fire();
    while TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    handler.may.notify_one();
    let answer = to_end(&mut open).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    serving.await.unwrap();
}
