//! Connections between a client's machine and a process: frames in order, late; ends; cuts.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use super::{Act, MS, World, json::Call};
use crate::core::{
    id::ConnectionId,
    mux::{
        Dest, Outbox, SlotId,
        tests::rig::{cut_frames, framed},
    },
};

/// What goes over a connection.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// A frame of a machine, read already.
    Call(Rc<Call>),
    /// A frame of a backend.
    Frame(String),
    /// The start of one, and no more.
    Half(String),
    End,
}

/// One upstream connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: usize,
    pub(super) connection: ConnectionId,
    pub(super) slot: SlotId,
    pub(super) server: usize,
    pub(super) pid: u64,
    up_at: u64,
    down_at: u64,
    /// Taxiway's end is open.
    pub(super) here: bool,
    /// The process's end is.
    pub(super) there: bool,
    /// What is on its way to the client is lost.
    pub(super) reset: bool,
    cut_up: VecDeque<Item>,
    cut_down: VecDeque<Item>,
    bytes: Vec<u8>,
    greeted: bool,
    /// How often each session was attached here, and the number of its last event since.
    pub(super) told: BTreeMap<String, (u64, u64)>,
}

impl World {
    /// The shell connects.
    pub(super) fn connect(&mut self, at: usize, slot: SlotId, backend: &str) {
        let alive = self.clients[at]
            .mux
            .as_ref()
            .is_some_and(|mux| mux.backend_of(slot).is_some());
        if !alive {
            return;
        }
        let server = self.server_named(backend);
        if self.servers[server].cut {
            // Nothing comes back; the machine has its own deadline.
            return;
        }
        let Some(pid) = self.servers[server].process.as_ref().map(|p| p.pid) else {
            self.note(|| format!("c{at}: {backend} refuses"));
            self.step(at, &[], |mux, cx, out| {
                mux.handle_upstream_closed(cx, slot, "connect failed", out);
                0
            });
            return;
        };
        self.next_link += 1;
        let link = self.next_link;
        self.note(|| format!("c{at}: link {link} to {backend} (process {pid})"));
        self.links.insert(
            link,
            Link {
                client: at,
                connection: self.clients[at].connection,
                slot,
                server,
                pid,
                up_at: 0,
                down_at: 0,
                here: true,
                there: true,
                reset: false,
                cut_up: VecDeque::new(),
                cut_down: VecDeque::new(),
                bytes: Vec::new(),
                greeted: false,
                told: BTreeMap::new(),
            },
        );
        self.clients[at].sockets.insert(slot.index(), (slot, link));
        self.step(at, &[], |mux, cx, out| {
            mux.handle_upstream_connected(cx, slot, out);
            0
        });
    }

    /// What a machine wants written.
    pub(super) fn write(&mut self, at: usize, out: &Outbox, input: &[u8]) {
        for (dest, bytes) in out.iter(input) {
            match dest {
                Dest::Client => self.clients[at].inbox.extend_from_slice(bytes),
                Dest::Upstream(slot) => {
                    let link = match self.clients[at].sockets.get(&slot.index()) {
                        Some((open, link)) if *open == slot => *link,
                        _ => panic!("written to a socket that is not there"),
                    };
                    let state = self.links.get_mut(&link).unwrap();
                    state.bytes.extend_from_slice(bytes);
                    let frames = cut_frames(&mut state.bytes);
                    for frame in frames {
                        self.note(|| format!("c{at} > {link}: {frame}"));
                        let call = Call::read(&frame);
                        self.check_written(at, link, &call);
                        self.send_up(link, Item::Call(Rc::new(call)));
                    }
                }
            }
        }
    }

    pub(super) fn send_up(&mut self, link: u64, item: Item) {
        let delay = 50 + self.chance.below(400);
        let state = self.links.get_mut(&link).unwrap();
        state.up_at = (self.now + delay).max(state.up_at);
        let at = state.up_at;
        self.plan_at(at, Act::ToServer(link, item));
    }

    pub(super) fn send_down(&mut self, link: u64, item: Item) {
        let delay = 50 + self.chance.below(400);
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.down_at = (self.now + delay).max(state.down_at);
        let at = state.down_at;
        self.plan_at(at, Act::ToMux(link, item));
    }

    /// Taxiway closes its end.
    pub(super) fn close_link(&mut self, link: u64) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        if std::mem::replace(&mut state.here, false) {
            self.send_up(link, Item::End);
        }
    }

    pub(super) fn reaches_server(&mut self, link: u64, item: Item) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        if self.servers[state.server].cut {
            state.cut_up.push_back(item);
            return;
        }
        let (server, pid) = (state.server, state.pid);
        let Some(process) = self.servers[server]
            .process
            .as_mut()
            .filter(|p| p.pid == pid)
        else {
            return;
        };
        if process.stopped {
            process.inbox.push_back((link, item));
            return;
        }
        self.server_reads(link, item);
    }

    pub(super) fn server_reads(&mut self, link: u64, item: Item) {
        let state = self.links.get_mut(&link).unwrap();
        let pid = state.pid;
        match item {
            Item::Call(call) if !state.greeted => {
                state.greeted = true;
                assert_eq!(call.method, "connect");
                let answer = r#"{"jsonrpc":"2.0","id":0,"result":{"ok":true,"protocolVersion":3}}"#;
                self.send_down(link, Item::Frame(answer.into()));
            }
            Item::Call(call) => {
                let delay = if self.chance.percent(80) {
                    self.chance.below(300)
                } else {
                    self.chance.below(5 * MS)
                };
                self.plan(delay, Act::Execute(pid, link, call));
            }
            Item::Frame(_) | Item::Half(_) => unreachable!("a machine writes whole frames"),
            Item::End => {
                state.there = false;
                self.detach_link(pid, link);
            }
        }
    }

    pub(super) fn reaches_mux(&mut self, link: u64, item: Item) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        if self.servers[state.server].cut {
            state.cut_down.push_back(item);
            return;
        }
        let (at, slot, server) = (state.client, state.slot, state.server);
        if !state.here || !self.clients[at].is(state.connection) {
            return;
        }
        match item {
            Item::Call(_) => unreachable!("a backend says what it has to say as text"),
            Item::Frame(_) | Item::Half(_) if state.reset => {}
            Item::Frame(body) => {
                self.watches[server].heard = self.now;
                self.mux_reads(at, link, slot, &framed(&body), &body);
            }
            Item::Half(body) => {
                let bytes = framed(&body);
                let half = self.chance.index(bytes.len());
                self.mux_reads(at, link, slot, &bytes[..half], "half a frame");
            }
            Item::End => {
                state.here = false;
                self.note(|| format!("c{at}: link {link} has ended"));
                self.clients[at].sockets.remove(&slot.index());
                self.step(at, &[], |mux, cx, out| {
                    mux.handle_upstream_closed(cx, slot, "lost", out);
                    0
                });
            }
        }
    }

    fn mux_reads(&mut self, at: usize, link: u64, slot: SlotId, bytes: &[u8], body: &str) {
        self.note(|| format!("c{at} < {link}: {body}"));
        self.clients[at].reading = Some(link);
        self.step(at, bytes, |mux, cx, out| {
            mux.handle_upstream(cx, slot, bytes, out)
        });
        self.clients[at].reading = None;
    }

    /// The network to this backend works again: what waited arrives.
    pub(super) fn heal(&mut self, server: usize) {
        self.servers[server].cut = false;
        let links: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, l)| l.server == server)
            .map(|(n, _)| *n)
            .collect();
        for link in links {
            while let Some(item) = self.links.get_mut(&link).unwrap().cut_up.pop_front() {
                self.reaches_server(link, item);
            }
            while let Some(item) = self.links.get_mut(&link).unwrap().cut_down.pop_front() {
                self.reaches_mux(link, item);
            }
        }
    }
}
