//! Health of the companion: `/healthz` says that it lives, `/readyz` that a client would come through
//! to the Taxiway.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpListener,
    sync::{Mutex, Semaphore},
    time::Instant,
};

use super::{ACCEPT_PAUSE, Companion};
use crate::transport::Stream;

/// Connections at a time.
const MOST: usize = 64;

/// One request and its answer, the check included.
const LIFETIME: Duration = Duration::from_secs(20);

/// What was found counts for so long: a probe that comes often opens no connection each time.
const FRESH: Duration = Duration::from_secs(1);

/// How long a server may take to refuse a certificate after the handshake.
const REFUSAL: Duration = Duration::from_millis(500);

/// Longest head of a request.
const HEAD: usize = 16 * 1024;

/// The last answer of a check.
type Last = Mutex<Option<(Instant, Result<(), String>)>>;

pub(super) async fn serve(listener: TcpListener, companion: Arc<Companion>) {
    let places = Arc::new(Semaphore::new(MOST));
    let last = Arc::new(Last::default());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        let (companion, last) = (companion.clone(), last.clone());
        tokio::spawn(async move {
            let service = service_fn(async |request: Request<Incoming>| {
                Ok::<_, Infallible>(answer(&request, &companion, &last).await)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .max_buf_size(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // The client's errors are the client's business.
            let _ended = tokio::time::timeout(LIFETIME, connection).await;
            drop(place);
        });
    }
}

async fn answer(
    request: &Request<Incoming>,
    companion: &Companion,
    last: &Last,
) -> Response<Full<bytes::Bytes>> {
    let (status, text) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if companion.draining.load(Ordering::Acquire) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "shutting down\n".to_owned(),
        ),
        "/readyz" => match checked(companion, last).await {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(why) => {
                let to = &companion.options.to;
                (StatusCode::SERVICE_UNAVAILABLE, format!("{to}: {why}\n"))
            }
        },
        _ => (StatusCode::NOT_FOUND, "/healthz, /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

/// Asks at most once at a time, and anew when the last answer is old.
async fn checked(companion: &Companion, last: &Last) -> Result<(), String> {
    let mut last = last.lock().await;
    if let Some((at, answer)) = &*last
        && at.elapsed() < FRESH
    {
        return answer.clone();
    }
    let answer = companion.check().await;
    *last = Some((Instant::now(), answer.clone()));
    answer
}

/// Waits for the first sign that a server has let us in, or has not.
pub(super) async fn welcome(stream: &mut Stream) -> io::Result<()> {
    let sign = std::future::poll_fn(|task| {
        let mut space = [0; 64];
        let mut space = ReadBuf::new(&mut space);
        match Pin::new(&mut *stream).poll_read(task, &mut space) {
            Poll::Ready(Ok(())) if space.filled().is_empty() => {
                Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
            }
            Poll::Ready(read) => Poll::Ready(read),
            Poll::Pending if stream.is_welcomed() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    });
    // One that says nothing has nothing against us.
    tokio::time::timeout(REFUSAL, sign).await.unwrap_or(Ok(()))
}
