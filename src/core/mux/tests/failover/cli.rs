//! A backend: a name, and the process that runs under it at present.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use serde_json::Value;

use super::{
    Act, MS, World,
    json::Call,
    session::{Line, Open, Stage, Turn, What, survivor},
    wire::Item,
};
use crate::core::mux::tests::rig::{failure, not_found};

/// For so long an aborted turn takes an answer, by experiment.
const REVIVES: u64 = 10 * MS;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) process: Option<Process>,
    /// Nothing comes through to it, and nothing from it.
    pub(super) cut: bool,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u64,
    pub(super) stopped: bool,
    /// What has come while it was stopped.
    pub(super) inbox: VecDeque<(u64, Item)>,
    /// What it was about to do when it was stopped.
    pub(super) deferred: Vec<Act>,
    pub(super) sessions: BTreeMap<String, Open>,
}

impl Server {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            process: None,
            cut: false,
        }
    }

    pub(super) fn pid(&self) -> u64 {
        self.process.as_ref().map_or(0, |p| p.pid)
    }

    /// Whether it would answer now.
    pub(super) fn answers(&self) -> bool {
        !self.cut && self.process.as_ref().is_some_and(|p| !p.stopped)
    }
}

fn id_of(call: &Call) -> Value {
    serde_json::from_str(&call.id).unwrap()
}

impl World {
    pub(super) fn server_named(&self, name: &str) -> usize {
        self.servers.iter().position(|s| s.name == name).unwrap()
    }

    pub(super) fn server_of(&self, pid: u64) -> Option<usize> {
        self.servers.iter().position(|s| s.pid() == pid)
    }

    fn process(&mut self, pid: u64) -> Option<&mut Process> {
        self.servers
            .iter_mut()
            .filter_map(|s| s.process.as_mut())
            .find(|p| p.pid == pid)
    }

    fn open(&mut self, pid: u64, session: &str) -> Option<&mut Open> {
        self.process(pid)?.sessions.get_mut(session)
    }

    pub(super) fn disk_of(&self, server: usize) -> usize {
        if self.disks.len() == 1 { 0 } else { server }
    }

    pub(super) fn start_process(&mut self, server: usize) {
        self.next_pid += 1;
        let pid = self.next_pid;
        self.note(|| format!("b{server}: process {pid} starts"));
        self.servers[server].process = Some(Process {
            pid,
            stopped: false,
            inbox: VecDeque::new(),
            deferred: Vec::new(),
            sessions: BTreeMap::new(),
        });
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self, server: usize) {
        let Some(process) = self.servers[server].process.take() else {
            return;
        };
        let pid = process.pid;
        self.note(|| format!("b{server}: process {pid} is killed"));
        let links: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, l)| l.pid == pid && l.there)
            .map(|(n, _)| *n)
            .collect();
        for link in links {
            self.break_link(link);
        }
        let delay = self.chance.span(300 * MS);
        self.plan(delay, Act::ControlEnd(server, pid));
    }

    /// The process's end of a connection is gone; what it has written may arrive before the end.
    pub(super) fn break_link(&mut self, link: u64) {
        let reset = self.chance.percent(40);
        let half = self.chance.percent(10);
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.there = false;
        state.reset = reset;
        if half {
            let body = r#"{"jsonrpc":"2.0","id":1,"result":{"x":"cut"}}"#;
            self.send_down(link, Item::Half(body.into()));
        }
        self.send_down(link, Item::End);
    }

    /// SIGCONT: it goes on with what it was about to do, and with what is in its sockets.
    pub(super) fn wake_process(&mut self, server: usize) {
        let Some(process) = self.servers[server].process.as_mut().filter(|p| p.stopped) else {
            return;
        };
        process.stopped = false;
        let pid = process.pid;
        let deferred = std::mem::take(&mut process.deferred);
        let inbox = std::mem::take(&mut process.inbox);
        self.note(|| format!("b{server}: process {pid} wakes"));
        for act in deferred {
            let delay = self.chance.below(20 * MS);
            self.plan(delay, act);
        }
        for (link, item) in inbox {
            self.server_reads(link, item);
        }
    }

    /// The process, if it runs; `act` is done when it wakes, if it is stopped.
    fn running(&mut self, pid: u64, act: impl FnOnce() -> Act) -> bool {
        match self.process(pid) {
            None => false,
            Some(process) if process.stopped => {
                process.deferred.push(act());
                false
            }
            Some(_) => true,
        }
    }

    // Calls.

    pub(super) fn execute(&mut self, pid: u64, link: u64, call: Rc<Call>) {
        if !self.running(pid, || Act::Execute(pid, link, call.clone())) {
            return;
        }
        let (id, method, session) = (&call.id, call.method.as_str(), call.session.as_str());
        // By experiment: what was answered right before the end of a connection counts.
        let answers = method == "session.tools.handlePendingToolCall";
        if !answers && !self.links.get(&link).is_some_and(|l| l.there) {
            return;
        }
        if method.is_empty() {
            return;
        }
        let now = self.now;
        let open = self.open(pid, session);
        let is_open = open.map(|open| open.used = now).is_some();
        let fine = |result: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
        let answer = match method {
            "session.create" | "session.resume" => self.attach(pid, link, &call),
            "session.detach" => {
                self.detach(pid, link, session);
                fine(r#"{"success":true}"#)
            }
            "sessions.save" => {
                self.flush(pid, session);
                fine("{}")
            }
            _ if !is_open => not_found(id_of(&call), method, session),
            "session.send" => match self.take_send(pid, link, &call) {
                Some(answer) => answer,
                None => return,
            },
            "session.tools.handlePendingToolCall" => {
                self.check_answer(pid, session, &call.request, link);
                let success = self.tool_answered(pid, session, &call.request);
                fine(&format!(r#"{{"success":{success}}}"#))
            }
            "session.metadata.isProcessing" => {
                let processing = self.open(pid, session).is_some_and(|s| s.turn.is_some());
                fine(&format!(r#"{{"processing":{processing}}}"#))
            }
            "session.abort" => {
                // Taxiway's own: its client knows already, and perhaps those of others do.
                if id.starts_with("\"taxiway-") {
                    self.may_miss_end(pid, session);
                    if let Some(open) = self.open(pid, session)
                        && let Some(turn) = &open.turn
                    {
                        open.aborted = Some((link, now, turn.waiting.clone()));
                    }
                }
                let answer = fine(r#"{"success":true}"#);
                return self.abort(pid, session, link, answer);
            }
            "session.mode.set" => {
                self.log(pid, session, What::Mode(call.mode.clone()));
                fine("{}")
            }
            "session.permissions.setApproveAll" => {
                if let Some(open) = self.open(pid, session) {
                    open.approve = Some(call.value.clone());
                }
                fine(r#"{"success":true}"#)
            }
            "session.getMessages" => {
                let approve = self.open(pid, session).and_then(|s| s.approve.clone());
                let approve = approve.unwrap_or_default();
                fine(&format!(r#"{{"events":[],"approve":"{approve}"}}"#))
            }
            other => panic!("the model does not know {other}"),
        };
        self.say(link, answer);
    }

    pub(super) fn say(&mut self, link: u64, body: String) {
        if self.links.get(&link).is_some_and(|l| l.there) {
            self.send_down(link, Item::Frame(body));
        }
    }

    fn attach(&mut self, pid: u64, link: u64, call: &Call) -> String {
        let now = self.now;
        let (id, method) = (&call.id, call.method.as_str());
        let (session, tool) = (call.session.clone(), call.tool.clone());
        self.touched.push(session.clone());
        let server = self.server_of(pid).unwrap();
        let disk = self.disk_of(server);
        if self.open(pid, &session).is_none() {
            self.next_request += 1;
            let number = self.next_request;
            let lines = self.disks[disk].get(&session);
            // Without it, what was pending is given up.
            let goes_on = call.goes_on;
            let mut open = Open::default();
            match (lines, method) {
                (None, "session.resume") => {
                    let words = format!(
                        "Request session.resume failed with message: Failed to load session \
                         events: Session not found: {session}"
                    );
                    return failure(id_of(call), &words);
                }
                (None, _) => {}
                // Sent before it was stopped, read after it woke: nobody waits for it any more. Only
                // a fence keeps it from that.
                (Some(_), "session.create") if !self.links[&link].here => {}
                (Some(_), "session.create") => {
                    panic!("an empty history over that of {session}: {call:?}");
                }
                (Some(lines), _) => {
                    open.logged = true;
                    if let Some((message, waiting)) = survivor(lines).filter(|_| goes_on) {
                        open.turn = Some(Turn {
                            number,
                            message,
                            stages: [Stage::Message, Stage::End].into(),
                            waiting,
                            owed: Vec::new(),
                        });
                    }
                }
            }
            let survives = open.turn.is_some();
            self.note(|| format!("b{server}: {pid} opens {session} (in a turn: {survives})"));
            self.stats.survived += u64::from(survives);
            self.process(pid)
                .unwrap()
                .sessions
                .insert(session.clone(), open);
        }
        let open = self.open(pid, &session).unwrap();
        let clash = |(n, t): (&u64, &String)| *n != link && *t == tool && !tool.is_empty();
        if open.attached.iter().any(clash) {
            if open.attached.is_empty() {
                self.process(pid).unwrap().sessions.remove(&session);
            }
            let words = format!(
                "Request {method} failed with message: External tool name clash: {tool} already \
                 registered by another connection"
            );
            return failure(id_of(call), &words);
        }
        open.used = now;
        open.attached.insert(link, tool);
        let told = self.links.get_mut(&link).unwrap();
        let (epoch, last) = told.told.entry(session.clone()).or_default();
        *epoch += 1;
        *last = 0;
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"sessionId":"{session}"}}}}"#)
    }

    // Leaving.

    fn detach(&mut self, pid: u64, link: u64, session: &str) {
        let Some(open) = self.open(pid, session) else {
            return;
        };
        if open.attached.remove(&link).is_none() {
            return;
        }
        if open.attached.is_empty() {
            self.close_session(pid, session);
        }
    }

    pub(super) fn detach_link(&mut self, pid: u64, link: u64) {
        let Some(process) = self.process(pid) else {
            return;
        };
        let sessions: Vec<String> = process
            .sessions
            .iter()
            .filter(|(_, open)| open.attached.contains_key(&link))
            .map(|(session, _)| session.clone())
            .collect();
        for session in sessions {
            self.detach(pid, link, &session);
        }
    }

    /// Closed for everybody: the turn is cut.
    pub(super) fn close_session(&mut self, pid: u64, session: &str) {
        if self.open(pid, session).is_none() {
            return;
        }
        self.note(|| format!("process {pid} closes {session}"));
        self.log(pid, session, What::Shutdown);
        self.flush(pid, session);
        let open = self.process(pid).unwrap().sessions.remove(session);
        let open = open.expect("it was there");
        let queued = open.queue.into_iter().filter_map(|(_, owed)| owed);
        let owed = open.turn.map(|turn| turn.owed).unwrap_or_default();
        self.pay(owed.into_iter().chain(queued).collect());
    }

    // The log.

    pub(super) fn log(&mut self, pid: u64, session: &str, what: What) {
        let wait = 100 * MS + self.chance.below(50 * MS);
        let Some(open) = self.open(pid, session) else {
            return;
        };
        open.logged |= matches!(what, What::User(_));
        open.unflushed.push(what);
        if open.unflushed.len() == 1 {
            open.batch += 1;
            let batch = open.batch;
            self.plan(wait, Act::Flush(pid, session.to_owned(), batch));
        }
    }

    pub(super) fn flush_batch(&mut self, pid: u64, session: String, batch: u64) {
        if self.running(pid, || Act::Flush(pid, session.clone(), batch))
            && self.open(pid, &session).is_some_and(|s| s.batch == batch)
        {
            self.flush(pid, &session);
        }
    }

    /// What is not on disk goes there. Before its first turn a session leaves nothing.
    pub(super) fn flush(&mut self, pid: u64, session: &str) {
        let Some(open) = self.open(pid, session) else {
            return;
        };
        if !open.logged || open.unflushed.is_empty() {
            return;
        }
        open.batch += 1;
        let lines = std::mem::take(&mut open.unflushed);
        let server = self.server_of(pid).unwrap();
        let stale = self.check_log(server, session, &lines);
        self.stats.stale += u64::from(stale);
        let disk = self.disk_of(server);
        let log = self.disks[disk].entry(session.to_owned()).or_default();
        if log.is_empty() {
            log.push(Line {
                pid,
                what: What::Start,
                stale,
            });
        }
        log.extend(lines.into_iter().map(|what| Line { pid, what, stale }));
    }

    // Turns.

    pub(super) fn tell(&mut self, pid: u64, session: &str, kind: &str, data: &str) {
        let Some(open) = self.open(pid, session) else {
            return;
        };
        let links: Vec<u64> = open.attached.keys().copied().collect();
        self.next_request += 1;
        let event = self.next_request;
        for link in links {
            let Some(state) = self.links.get_mut(&link) else {
                continue;
            };
            let (epoch, n) = state.told.get_mut(session).unwrap();
            *n += 1;
            let body = format!(
                r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"sessionId":"{session}","event":{{"type":"{kind}","data":{{"link":{link},"epoch":{epoch},"n":{n}{data}}},"id":"e{event}"}}}}}}"#
            );
            self.say(link, body);
        }
    }

    fn take_send(&mut self, pid: u64, link: u64, call: &Call) -> Option<String> {
        let (session, message) = (call.session.clone(), call.prompt.clone());
        let (id, wait) = (call.id.clone(), call.wait);
        assert!(
            self.taken.insert(message.clone()),
            "{message} is executed twice"
        );
        let owed = wait.then(|| (link, id.clone()));
        let open = self.open(pid, &session).unwrap();
        let ack = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"messageId":"{message}"}}}}"#);
        if open.turn.is_some() {
            open.queue.push_back((message, owed));
            self.tell(pid, &session, "pending_messages.modified", "");
        } else {
            let early = !wait && self.chance.percent(70);
            if early {
                self.say(link, ack.clone());
            }
            self.begin(pid, &session, message, owed);
            if early {
                return None;
            }
        }
        (!wait).then_some(ack)
    }

    fn begin(&mut self, pid: u64, session: &str, message: String, owed: Option<(u64, String)>) {
        let mut stages = vec![Stage::Start, Stage::Delta];
        match self.chance.below(10) {
            0..4 => {}
            4..8 => stages.push(Stage::Tools(1 + self.chance.below(2))),
            _ => stages.extend([Stage::Tools(1), Stage::Delta, Stage::Tools(1)]),
        }
        stages.extend([Stage::Message, Stage::End]);
        self.next_request += 1;
        let number = self.next_request;
        let open = self.open(pid, session).unwrap();
        let owed_before = open.turn.take().map(|t| t.owed).unwrap_or_default();
        open.turn = Some(Turn {
            number,
            message: message.clone(),
            stages: stages.into(),
            waiting: Default::default(),
            owed: owed_before.into_iter().chain(owed).collect(),
        });
        self.log(pid, session, What::User(message.clone()));
        let data = format!(r#","messageId":"{message}""#);
        self.tell(pid, session, "user.message", &data);
        self.next_stage(pid, session, number);
    }

    fn next_stage(&mut self, pid: u64, session: &str, turn: u64) {
        let delay = self.chance.span(400 * MS);
        self.plan(delay, Act::Step(pid, session.to_owned(), turn));
    }

    pub(super) fn step_turn(&mut self, pid: u64, session: String, number: u64) {
        if !self.running(pid, || Act::Step(pid, session.clone(), number)) {
            return;
        }
        let Some(open) = self.open(pid, &session) else {
            return;
        };
        let Some(turn) = open.turn.as_mut().filter(|t| t.number == number) else {
            return;
        };
        let message = turn.message.clone();
        match turn.stages.pop_front() {
            None => {}
            Some(Stage::Start) => {
                self.tell(pid, &session, "assistant.turn_start", "");
                self.next_stage(pid, &session, number);
            }
            Some(Stage::Delta) => {
                self.tell(pid, &session, "assistant.message_delta", "");
                self.next_stage(pid, &session, number);
            }
            Some(Stage::Tools(count)) => {
                for _ in 0..count {
                    self.next_request += 1;
                    let request = format!("r{}", self.next_request);
                    let open = self.open(pid, &session).unwrap();
                    let turn = open.turn.as_mut().unwrap();
                    turn.waiting.insert(request.clone());
                    self.log(pid, &session, What::Requested(request.clone()));
                    let data = format!(r#","requestId":"{request}""#);
                    self.tell(pid, &session, "external_tool.requested", &data);
                }
            }
            Some(Stage::Message) => {
                self.log(pid, &session, What::Answer(message));
                self.tell(pid, &session, "assistant.message", "");
                self.next_stage(pid, &session, number);
            }
            Some(Stage::End) => self.end_turn(pid, &session),
        }
    }

    fn end_turn(&mut self, pid: u64, session: &str) {
        let open = self.open(pid, session).unwrap();
        if let Some((message, owed)) = open.queue.pop_front() {
            self.begin(pid, session, message, owed);
            return;
        }
        let Some(turn) = open.turn.take() else { return };
        self.log(pid, session, What::Idle);
        // By experiment: what a client has seen idle is on disk.
        self.flush(pid, session);
        self.may_miss_told_end(pid, session, &turn.message);
        let data = format!(r#","turn":"{}""#, turn.message);
        self.tell(pid, session, "session.idle", &data);
        self.pay(turn.owed);
    }

    fn pay(&mut self, owed: Vec<(u64, String)>) {
        for (link, id) in owed {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"messageId":"w"}}}}"#);
            self.say(link, body);
        }
    }

    /// By experiment: an answer right behind an abort is taken, and takes the turn up again, which
    /// then never ends. Whoever aborts knows, so that it lets none pass.
    fn check_answer(&mut self, pid: u64, session: &str, request: &str, link: u64) {
        let now = self.now;
        if let Some((by, at, waiting)) = self.open(pid, session).and_then(|o| o.aborted.as_ref()) {
            let revives = *by == link && now - at <= REVIVES && waiting.contains(request);
            assert!(
                !revives,
                "{request} of {session} is answered right behind its abort"
            );
        }
    }

    fn tool_answered(&mut self, pid: u64, session: &str, request: &str) -> bool {
        let Some(turn) = self.open(pid, session).and_then(|s| s.turn.as_mut()) else {
            return false;
        };
        if !turn.waiting.remove(request) {
            return false;
        }
        let (done, number) = (turn.waiting.is_empty(), turn.number);
        // By experiment: a busy server writes the end of a tool's run so much later than its answer.
        let nth: u64 = request[1..].parse().unwrap();
        let late = nth.is_multiple_of(4).then(|| nth * 7 % 16 * 100 * MS);
        let what = match late {
            Some(_) => What::Answered(request.to_owned()),
            None => What::Completed(request.to_owned()),
        };
        self.log(pid, session, what);
        let data = format!(r#","requestId":"{request}""#);
        self.tell(pid, session, "external_tool.completed", &data);
        if let Some(late) = late {
            let act = Act::Ended(pid, session.to_owned(), request.to_owned(), number);
            self.plan(late, act);
        } else if done {
            self.next_stage(pid, session, number);
        }
        true
    }

    /// What came of a tool that was answered a while ago.
    pub(super) fn tool_ended(&mut self, pid: u64, session: String, request: String, number: u64) {
        let act = || Act::Ended(pid, session.clone(), request.clone(), number);
        if !self.running(pid, act) {
            return;
        }
        self.log(pid, &session, What::Ended(request));
        let turn = self.open(pid, &session).and_then(|s| s.turn.as_ref());
        if turn.is_some_and(|turn| turn.number == number && turn.waiting.is_empty()) {
            self.next_stage(pid, &session, number);
        }
    }

    /// The next event is the end of this turn, and may be kept from clients that were told of it.
    fn may_miss_told_end(&mut self, pid: u64, session: &str, message: &str) {
        let open = self.open(pid, session);
        let links: Vec<u64> = open
            .iter()
            .flat_map(|o| o.attached.keys().copied())
            .collect();
        for number in links {
            let Some(link) = self.links.get(&number) else {
                continue;
            };
            let client = &self.clients[link.client];
            let told = client.is(link.connection) && client.was_told_over(session, message);
            if let Some((epoch, n)) = link.told.get(session).filter(|_| told) {
                let end = (number, session.to_owned(), *epoch, n + 1);
                self.may_miss.insert(end);
            }
        }
    }

    /// The next two events of this session may be kept from who was told otherwise.
    fn may_miss_end(&mut self, pid: u64, session: &str) {
        let open = self.open(pid, session);
        let links: Vec<u64> = open
            .iter()
            .flat_map(|o| o.attached.keys().copied())
            .collect();
        for link in links {
            let told = self.links.get(&link).and_then(|l| l.told.get(session));
            if let Some((epoch, n)) = told.copied() {
                let next = [n + 1, n + 2].map(|n| (link, session.to_owned(), epoch, n));
                self.may_miss.extend(next);
            }
        }
    }

    /// By experiment: an abort is answered before the end of its turn is told.
    fn abort(&mut self, pid: u64, session: &str, link: u64, answer: String) {
        let open = self.open(pid, session).unwrap();
        let turn = open.turn.take();
        let queued = std::mem::take(&mut open.queue);
        if turn.is_some() {
            self.log(pid, session, What::Idle);
            self.flush(pid, session);
            self.tell(pid, session, "abort", "");
        }
        self.say(link, answer);
        let Some(turn) = turn else { return };
        let data = format!(r#","aborted":true,"turn":"{}""#, turn.message);
        self.tell(pid, session, "session.idle", &data);
        let owed = turn.owed.into_iter();
        self.pay(
            owed.chain(queued.into_iter().filter_map(|(_, o)| o))
                .collect(),
        );
    }
}
