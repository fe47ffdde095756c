//! A blocking HTTP/1 client that costs as little as possible beside what it measures.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No answer takes so long.
const LIMIT: Duration = Duration::from_secs(20);
/// Most bytes of an answer's head.
const MAX_HEAD: usize = 16 << 10;

/// A connection and the one request that is sent over it.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Plain,
    Gzip,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr, path: &str, coding: Coding) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let coding = match coding {
            Coding::Plain => "identity",
            Coding::Gzip => "gzip",
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/plain;version=0.0.4\r\nAccept-Encoding: {coding}\r\n\r\n"
        );
        Ok(Self { stream, request: request.into_bytes(), answer: vec![0; 256 << 10] })
    }

    /// Sends the request and reads the answer to its end; its body. Anything but 200 is an error.
    pub(crate) fn get(&mut self) -> io::Result<&[u8]> {
        self.stream.write_all(&self.request)?;
        let mut read = 0;
        let head = loop {
            let more = self.read(read)?;
            read += more;
            if let Some(end) = self.answer[..read].windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if more == 0 || read > MAX_HEAD {
                return Err(io::Error::other("the answer has no head"));
            }
        };
        let text = String::from_utf8_lossy(&self.answer[..head]).to_ascii_lowercase();
        if text.split(' ').nth(1) != Some("200") {
            return Err(io::Error::other(format!("answered {}", text.lines().next().unwrap_or_default())));
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let end = length.map(|length: usize| head + length);
        while end.is_none_or(|end| read < end) {
            let more = self.read(read)?;
            if more == 0 {
                break;
            }
            read += more;
        }
        match end {
            Some(end) if read != end => Err(io::Error::other(format!("{read} bytes instead of {end}"))),
            _ => Ok(&self.answer[head..read]),
        }
    }

    fn read(&mut self, at: usize) -> io::Result<usize> {
        if at == self.answer.len() {
            self.answer.resize(2 * at, 0);
        }
        self.stream.read(&mut self.answer[at..])
    }
}

/// One request on a connection of its own; the body as text.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut connection = Connection::open(address, path, Coding::Plain)?;
    let body = connection.get()?.to_vec();
    String::from_utf8(body).map_err(io::Error::other)
}
