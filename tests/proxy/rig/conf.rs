//! A configuration file, as values that a test can change.

use std::{
    collections::{BTreeMap, btree_map::Entry as Place},
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
};

use tokio::net::TcpSocket;

use super::{Disks, Sims};

/// An address that nobody else is given, in this process or another: the socket that took it stays
/// for as long as the tests run. It does not listen, so that who connects is refused, and a proxy
/// may (on Linux; elsewhere it is given back, and not given again by this process).
pub(crate) fn free_address() -> SocketAddr {
    static GIVEN: Mutex<BTreeMap<SocketAddr, Option<TcpSocket>>> = Mutex::new(BTreeMap::new());
    let mut given = GIVEN.lock().unwrap();
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        if let Place::Vacant(vacant) = given.entry(address) {
            vacant.insert(cfg!(target_os = "linux").then_some(socket));
            return address;
        }
    }
}

/// One `[[backends]]` entry.
#[derive(Clone)]
struct Entry {
    name: String,
    address: String,
    /// Lines besides.
    more: BTreeMap<String, String>,
}

/// The file.
#[derive(Clone)]
pub(crate) struct Conf {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    backends: Vec<Entry>,
}

impl Conf {
    /// Quick to notice, quick to forgive.
    pub(crate) fn new(disks: Disks) -> Self {
        let conf = Self {
            sections: BTreeMap::new(),
            backends: Vec::new(),
        };
        let mode = match disks {
            Disks::Separate => "sticky",
            Disks::Shared => "shared-storage",
        };
        conf.text("routing.mode", mode)
            .text("identity.session_id_user", "^user-(?<user>.+?)--")
            // Placement by rank alone, so that a test can tell beforehand where a session goes.
            .set("routing.load_factor", "0")
            .text("routing.home_wait", "2s")
            // A client that leaves is gone, but where it is the matter.
            .text("sessions.detach_grace", "0s")
            .text("health.interval", "200ms")
            .text("health.timeout", "1s")
            .set("health.unhealthy_after", "2")
            .set("health.healthy_after", "1")
            .text("health.slow_start", "0s")
            .fresh_addresses()
    }

    /// Other ports, for a start that lost its ports to somebody else.
    pub(crate) fn fresh_addresses(self) -> Self {
        self.text("listener.address", &free_address().to_string())
            .text("admin.address", &free_address().to_string())
    }

    /// `section.key = value`, the value as TOML.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        let (section, key) = key.rsplit_once('.').unwrap();
        let section = self.sections.entry(section.to_owned()).or_default();
        section.insert(key.to_owned(), value.to_owned());
        self
    }

    /// As if it had never been set.
    pub(crate) fn without(mut self, key: &str) -> Self {
        let (section, key) = key.split_once('.').unwrap();
        let section = self.sections.get_mut(section);
        section.and_then(|lines| lines.remove(key));
        self
    }

    /// `section.key = 'text'`.
    pub(crate) fn text(self, key: &str, text: &str) -> Self {
        self.set(key, &format!("'{text}'"))
    }

    /// All these servers.
    pub(crate) fn all_of(self, sims: &Sims) -> Self {
        let names = sims.names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.only(sims, &names)
    }

    /// Of these servers only those.
    pub(crate) fn only(mut self, sims: &Sims, names: &[&str]) -> Self {
        self.backends.clear();
        for name in names {
            self = self.backend(name, &sims.get(name).address().to_string());
        }
        self
    }

    /// One more.
    pub(crate) fn backend(mut self, name: &str, address: &str) -> Self {
        self.backends.push(Entry {
            name: name.to_owned(),
            address: address.to_owned(),
            more: BTreeMap::new(),
        });
        self
    }

    /// A line of one backend's entry.
    pub(crate) fn backend_set(mut self, name: &str, key: &str, value: &str) -> Self {
        let entry = self.backends.iter_mut().find(|b| b.name == name).unwrap();
        entry.more.insert(key.to_owned(), value.to_owned());
        self
    }

    /// An address of the file.
    pub(crate) fn address(&self, section: &str) -> SocketAddr {
        let text = &self.sections[section]["address"];
        text.trim_matches('\'').parse().unwrap()
    }

    /// As TOML.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for (section, lines) in &self.sections {
            writeln!(text, "[{section}]").unwrap();
            for (key, value) in lines {
                writeln!(text, "{key} = {value}").unwrap();
            }
        }
        for Entry {
            name,
            address,
            more,
        } in &self.backends
        {
            writeln!(text, "[[backends]]\nname = '{name}'\naddress = '{address}'").unwrap();
            for (key, value) in more {
                writeln!(text, "{key} = {value}").unwrap();
            }
        }
        text
    }
}
