//! One direction of a relay: bytes as they come, counted as they pass, with a bound on how long the
//! other side may take none. Knows nothing of frames.

use std::{io, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::tcp::{ReadHalf, WriteHalf},
};

/// Size of the relay's two buffers, which are there only while bytes wait.
const BUFFER: usize = 16 * 1024;

/// Why one direction of a relay cannot go on.
#[derive(Debug)]
pub(super) enum Halt {
    /// The side that is read.
    Read(io::Error),
    /// The side that is written.
    Write(io::Error),
    /// Nothing was taken for that long.
    Stalled,
}

/// Copies one direction to its end, and passes the end on. `passed` hears of every read.
pub(super) async fn copy(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    stall: Duration,
    passed: impl Fn(u64),
) -> Result<(), Halt> {
    loop {
        from.readable().await.map_err(Halt::Read)?;
        // Made anew after each wait: an idle connection owns no buffer.
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = match from.try_read(&mut buffer) {
                Ok(0) => return to.shutdown().await.map_err(Halt::Write),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Halt::Read(error)),
            };
            passed(n as u64);
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                let taken = tokio::time::timeout(stall, to.write(rest))
                    .await
                    .map_err(|_| Halt::Stalled)?
                    .map_err(Halt::Write)?;
                if taken == 0 {
                    return Err(Halt::Write(io::ErrorKind::WriteZero.into()));
                }
                rest = &rest[taken..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_are_counted_as_they_pass_and_the_end_is_passed_on() {
        let ((mut source, mut from), (mut to, mut sink)) = (pair().await, pair().await);
        let text = vec![7; 10 * BUFFER + 1];
        let passed = AtomicU64::new(0);
        let (mut input, _keep) = from.split();
        let (_unread, mut output) = to.split();
        let copying = copy(&mut input, &mut output, Duration::from_secs(60), |n| {
            passed.fetch_add(n, Ordering::Relaxed);
        });
        let writing = async {
            source.write_all(&text).await.unwrap();
            source.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (copied, (), read) = tokio::join!(copying, writing, sink.read_to_end(&mut got));
        copied.unwrap();
        assert_eq!(read.unwrap(), text.len());
        assert_eq!(got, text);
        assert_eq!(passed.into_inner(), text.len() as u64);
    }

    #[tokio::test]
    async fn who_takes_nothing_for_too_long_ends_the_copy() {
        let ((mut source, mut from), (mut to, _sink)) = (pair().await, pair().await);
        let (mut input, _keep) = from.split();
        let (_unread, mut output) = to.split();
        let copying = copy(&mut input, &mut output, Duration::from_millis(50), |_| {});
        let writing = async {
            // More than any socket buffers hold: ends only with the copy.
            let text = vec![7; 1 << 20];
            loop {
                source.write_all(&text).await.unwrap();
            }
        };
        let ended = tokio::select! {
            ended = copying => ended,
            () = writing => Ok(()),
        };
        assert!(matches!(ended, Err(Halt::Stalled)), "{ended:?}");
    }
}
