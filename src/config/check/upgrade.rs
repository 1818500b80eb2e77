//! `[upgrade]`: where the next process finds the running one.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{Check, Env};
use crate::config::UpgradeSocket;

/// The longest path of a Unix socket, in bytes (`sun_path` without its final zero).
const LONGEST: usize = 107;

impl Check<'_> {
    pub(super) fn upgrade_socket(&mut self, listener: SocketAddr) -> UpgradeSocket {
        let table = self.raw.table("upgrade");
        let Some(written) = table.text("socket") else {
            return usual_socket(listener, self.environment);
        };
        let path = self.path(&written);
        if let Some(span) = table.sound("socket")
            && path.as_os_str().len() > LONGEST
        {
            let message = format!(
                "upgrade.socket: {} is longer than a socket's path may be",
                path.display()
            );
            self.report
                .error(span, message)
                .help(format!("at most {LONGEST} bytes"));
        }
        UpgradeSocket::Given(path)
    }
}

/// In the directory that systemd or the session gives to this service or user for such things.
pub(in crate::config) fn usual_socket(listener: SocketAddr, environment: Env<'_>) -> UpgradeSocket {
    if listener.port() == 0 {
        // Its name could not be told from the others'.
        return UpgradeSocket::None;
    }
    let absolute = |path: &str| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let directory = environment("RUNTIME_DIRECTORY")
        // systemd: several are separated by colons.
        .and_then(|all| absolute(all.split(':').next().unwrap_or_default()))
        .or_else(|| Some(absolute(&environment("XDG_RUNTIME_DIR")?)?.join("taxiway")));
    let socket = |directory: PathBuf| {
        let ip = listener.ip().to_string().replace(':', "_");
        Path::join(&directory, format!("upgrade-{ip}-{}.sock", listener.port()))
    };
    match directory.map(socket) {
        Some(path) if path.as_os_str().len() <= LONGEST => UpgradeSocket::Usual(path),
        Some(_) | None => UpgradeSocket::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_place_is_the_services_or_the_users() {
        let usual = |port: u16, variables: &[(&str, &str)]| {
            let environment = |name: &str| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            usual_socket(SocketAddr::from(([127, 0, 0, 1], port)), &environment)
        };
        let at = |path: &str| UpgradeSocket::Usual(path.into());
        let user = ("XDG_RUNTIME_DIR", "/run/user/1");
        assert_eq!(
            usual(1, &[user]),
            at("/run/user/1/taxiway/upgrade-127.0.0.1-1.sock")
        );
        assert_eq!(
            usual(1, &[user, ("RUNTIME_DIRECTORY", "/run/a:/run/b")]),
            at("/run/a/upgrade-127.0.0.1-1.sock")
        );
        assert_eq!(usual(0, &[user]), UpgradeSocket::None);
        assert_eq!(usual(1, &[]), UpgradeSocket::None);
        assert_eq!(
            usual(1, &[("XDG_RUNTIME_DIR", "here")]),
            UpgradeSocket::None
        );
        let long = format!("/{}", "x".repeat(100));
        assert_eq!(
            usual(1, &[("RUNTIME_DIRECTORY", &long)]),
            UpgradeSocket::None
        );
    }
}
