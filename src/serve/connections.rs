//! Connections: accepted by hand, since each has its limits of time and size, and ended in order.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::limits::{HEADER_BYTES, HEADERS, Limits};

/// The answer to a connection beyond the limit.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
/// The time after a failure to accept, as where there are no more file descriptors.
const PAUSE: Duration = Duration::from_millis(50);
/// The time for the answer to a connection beyond the limit.
const FULL_TIME: Duration = Duration::from_secs(1);

/// Accepts connections, for which there are `places`, until the server ends, and then waits until they are done, for as long as the limits have it.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    (limits, places): (Limits, Arc<Semaphore>),
    mut ending: watch::Receiver<bool>,
) {
    loop {
        let Some(accepted) = before(&mut ending, listener.accept()).await else { break };
        let Ok((stream, _)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        // Tokens are small and go at once.
        let _ = stream.set_nodelay(true);
        let Ok(permit) = places.clone().try_acquire_owned() else {
            tokio::spawn(refuse(stream));
            continue;
        };
        let (router, ending, limits) = (router.clone(), ending.clone(), limits.clone());
        tokio::spawn(async move {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(limits.header_time);
            builder.max_buf_size(HEADER_BYTES).max_headers(HEADERS);
            let stream = Timed { stream, limit: limits.write_time, waiting: None };
            let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            let mut connection = pin!(connection);
            let mut ending = ending;
            if before(&mut ending, connection.as_mut()).await.is_none() {
                // The request that runs is answered, and no other is taken.
                connection.as_mut().graceful_shutdown();
                // A connection that breaks has nobody to report it to.
                let _ = connection.await;
            }
            drop(permit);
        });
    }
    drop(listener);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    // Answers that take longer than the time to drain end with the runtime.
    let _ = timeout(limits.drain_time, places.acquire_many(all)).await;
}

/// The result of `work`, or `None` once the server ends.
async fn before<T>(ending: &mut watch::Receiver<bool>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut end = pin!(ending.wait_for(|ending| *ending));
    std::future::poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => end.as_mut().poll(context).map(|_| None),
    })
    .await
}

/// Answers that the server is full. What the client has sent is read and dropped, since a connection that is closed over unread
/// bytes is reset, and the answer with it.
async fn refuse(mut stream: TcpStream) {
    let told = async {
        stream.write_all(FULL).await?;
        stream.shutdown().await?;
        let mut sent = [0; 4096];
        while stream.read(&mut sent).await? > 0 {}
        io::Result::Ok(())
    };
    // A client that does not read it has lost nothing.
    let _ = timeout(FULL_TIME, told).await;
}

/// A stream that breaks when the other side takes nothing for some time.
struct Timed {
    stream: TcpStream,
    limit: Duration,
    /// The end of the time, while something waits to be taken.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    fn timed<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.waiting = None;
            return poll;
        }
        let deadline = Instant::now() + self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        waiting.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Timed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.timed(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.timed(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
