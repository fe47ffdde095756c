//! Answers clients that send HTTP in clear to a TLS port.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The answer to a request in clear on a TLS port.
const PLAIN_HTTP_ANSWER: &[u8] = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
Connection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
/// Bytes of such a request that are read before the connection is closed.
const PLAIN_HTTP_READ: usize = 64 * 1024;
/// Time for all of that.
const PLAIN_HTTP_TIME: Duration = Duration::from_secs(2);

/// Tells a client that speaks HTTP where TLS is spoken, as Go's servers do, and gives the stream
/// back if it speaks anything else. A handshake begins with byte 22, a request with a letter.
pub(super) async fn refuse_plain_http(mut stream: TcpStream, limit: Duration) -> Option<TcpStream> {
    let mut first = [0];
    let peeked = tokio::time::timeout(limit, stream.peek(&mut first)).await;
    if !matches!(peeked, Ok(Ok(1))) {
        return None;
    }
    if !first[0].is_ascii_uppercase() {
        return Some(stream);
    }
    let answered = async {
        stream.write_all(PLAIN_HTTP_ANSWER).await?;
        stream.shutdown().await?;
        // Closing with the request unread would reset the connection under the answer.
        let mut request = [0; 1024];
        let mut left = PLAIN_HTTP_READ;
        while left > 0 {
            match stream.read(&mut request).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        io::Result::Ok(())
    };
    // However it ends, the connection is over.
    let _ = tokio::time::timeout(PLAIN_HTTP_TIME, answered).await;
    None
}
