//! What a service manager gives and wants to know: sockets that it has bound (systemd's socket
//! activation), and news of how far this process is (`sd_notify`). Without one, nothing happens.

use std::{
    env, io,
    net::{SocketAddr, TcpListener},
};

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The sockets that came with the start.
#[derive(Debug, Default)]
pub struct Activated {
    sockets: Vec<(String, SocketAddr, TcpListener)>,
}

impl Activated {
    /// Takes them over. For the first thing in `main`: the second call finds none.
    ///
    /// # Errors
    /// One is no listening TCP socket.
    pub fn from_environment() -> io::Result<Self> {
        let mut found = ListenFd::from_env();
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = Vec::new();
        for index in 0..found.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let Some(socket) = found.take_tcp_listener(index)? else {
                continue;
            };
            socket.set_nonblocking(true)?;
            sockets.push((name, socket.local_addr()?, socket));
        }
        Ok(Self { sockets })
    }

    /// The one of this name (`FileDescriptorName=`), else the one that listens at `address`.
    pub fn take(&mut self, name: &str, address: SocketAddr) -> Option<TcpListener> {
        let named = self.sockets.iter().position(|(n, ..)| n == name);
        let at = named.or_else(|| self.sockets.iter().position(|(_, at, _)| *at == address))?;
        Some(self.sockets.swap_remove(at).2)
    }

    /// Where those listen that nobody took.
    pub fn left(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|(_, at, _)| *at).collect()
    }
}

/// How far this process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It serves, and is the one to be watched from now on.
    Ready,
    /// It reads its configuration again; `Ready` follows.
    Reloading,
    /// It ends.
    Stopping,
}

/// Tells the service manager, if there is one.
pub fn notify(progress: Progress) {
    let told = match progress {
        Progress::Ready => {
            sd_notify::notify(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())])
        }
        Progress::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        Progress::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        tracing::warn!(target: "taxiway", %error, "cannot tell the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_name_and_by_address() {
        let socket = || {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            (socket.local_addr().unwrap(), socket)
        };
        let ((a, first), (b, second)) = (socket(), socket());
        let mut activated = Activated {
            sockets: vec![("admin".into(), a, first), (String::new(), b, second)],
        };
        let elsewhere = "127.0.0.1:1".parse().unwrap();
        assert!(activated.take("listener", elsewhere).is_none());
        let found = activated.take("admin", elsewhere).unwrap();
        assert_eq!(found.local_addr().unwrap(), a);
        assert_eq!(activated.left(), [b]);
        let found = activated.take("listener", b).unwrap();
        assert_eq!(found.local_addr().unwrap(), b);
        assert!(activated.left().is_empty());
    }
}
