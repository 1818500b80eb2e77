//! What goes wrong, and when: drawn from the seed.

use super::{Act, MS, SECOND, World};

/// One thing that goes wrong, mostly at a backend.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    Kill(usize),
    Start(usize),
    Stop(usize),
    Wake(usize),
    Cut(usize),
    Heal(usize),
    /// One client's connection to it ends.
    Break(usize),
    /// All connections of clients end.
    BreakAll(usize),
    /// The control connection ends.
    BreakControl(usize),
    /// It closes an idle session without a word.
    Clean(usize),
}

impl World {
    pub(super) fn plan_faults(&mut self) {
        let count = 1 + self.chance.below(6);
        for _ in 0..count {
            let at = SECOND + self.chance.below(self.size.busy - SECOND);
            let server = self.chance.index(self.servers.len());
            let mut pause = match self.chance.below(4) {
                0 => self.chance.below(500 * MS),
                1 | 2 => SECOND + self.chance.below(6 * SECOND),
                _ => 8 * SECOND + self.chance.below(15 * SECOND),
            };
            let pair = match self.chance.below(20) {
                0..6 => [Fault::Kill(server), Fault::Start(server)],
                6..10 => {
                    if self.chance.percent(60) {
                        pause += 9 * SECOND;
                    }
                    [Fault::Stop(server), Fault::Wake(server)]
                }
                10..12 => [Fault::Cut(server), Fault::Heal(server)],
                12..14 => [Fault::Break(server), Fault::Break(server)],
                14 => [Fault::BreakAll(server), Fault::Break(server)],
                15 => [Fault::BreakControl(server), Fault::BreakAll(server)],
                16 => [Fault::BreakAll(server), Fault::BreakControl(server)],
                _ => [Fault::Clean(server), Fault::Clean(server)],
            };
            let [first, second] = pair;
            self.plan_at(at, Act::Fault(first));
            self.plan_at(at + pause, Act::Fault(second));
            if self.chance.percent(15) {
                // Two at once.
                let other = self.chance.index(self.servers.len());
                let near = self.chance.below(20 * MS);
                self.plan_at(at + near, Act::Fault(Fault::Kill(other)));
                self.plan_at(at + near + pause / 2, Act::Fault(Fault::Start(other)));
            }
        }
        for at in 0..self.clients.len() {
            if self.chance.percent(30) {
                let connection = self.clients[at].connection;
                let when = self.chance.below(self.size.busy);
                self.plan_at(when, Act::Leave(at, connection));
            }
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.quiet {
            return;
        }
        self.note(|| format!("**** {fault:?}"));
        match fault {
            Fault::Kill(server) => self.kill(server),
            Fault::Start(server) => {
                if self.servers[server].process.is_none() {
                    self.start_process(server);
                }
            }
            Fault::Stop(server) => {
                if let Some(process) = &mut self.servers[server].process {
                    process.stopped = true;
                }
            }
            Fault::Wake(server) => self.wake_process(server),
            Fault::Cut(server) => self.servers[server].cut = true,
            Fault::Heal(server) => self.heal(server),
            Fault::Break(server) => {
                let links = self.links_of(server);
                if !links.is_empty() {
                    let link = links[self.chance.index(links.len())];
                    self.break_both(link);
                }
            }
            Fault::BreakAll(server) => {
                for link in self.links_of(server) {
                    self.break_both(link);
                }
            }
            Fault::BreakControl(server) => {
                let pid = self.servers[server].pid();
                self.control_ended(server, pid);
            }
            Fault::Clean(server) => self.clean_one(server),
        }
    }

    fn links_of(&self, server: usize) -> Vec<u64> {
        let here = self
            .links
            .iter()
            .filter(|(_, l)| l.server == server && l.here);
        here.map(|(link, _)| *link).collect()
    }

    /// Both ends see the end, each in its own time.
    fn break_both(&mut self, link: u64) {
        if self.links[&link].there {
            self.send_up(link, super::wire::Item::End);
            self.send_down(link, super::wire::Item::End);
        }
    }

    fn clean_one(&mut self, server: usize) {
        let Some(process) = self.servers[server].process.as_ref().filter(|p| !p.stopped) else {
            return;
        };
        let pid = process.pid;
        // In truth it is minutes.
        let idle_for = 6 * SECOND;
        let idle: Vec<String> = process
            .sessions
            .iter()
            .filter(|(_, s)| s.turn.is_none() && s.used + idle_for < self.now)
            .map(|(session, _)| session.clone())
            .collect();
        if !idle.is_empty() {
            let session = idle[self.chance.index(idle.len())].clone();
            self.close_session(pid, &session);
        }
    }

    /// The faults are over.
    pub(super) fn repair(&mut self) {
        for server in 0..self.servers.len() {
            self.heal(server);
            self.wake_process(server);
            if self.servers[server].process.is_none() {
                self.start_process(server);
            }
        }
    }
}
