//! The busy period of a session: works the queue off, prompt by prompt, in the real server's
//! order of events.
//!
//! Left out of a turn, because clients ignore them: `model.*`, `session.usage_info`,
//! `session.skills_loaded`, `session.mcp_servers_loaded`, `session.managed_settings_resolved`,
//! `session.indexed_search`, `session.background_tasks_changed`, `agent.interrupted`.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{
    event::{self, Life, now, quoted},
    lifetime,
    script::{Reply, Script},
    server::{ROOT, Shared, WORK},
    session::{Busy, Sent, Session, TurnState},
    state::{Asked, Call, State},
    tool,
};

/// The work was cut short: the session closed, or the turn was aborted.
pub(super) struct Cut;

/// How a prompt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    Done,
    /// A permission was refused: the real server aborts the turn itself.
    Rejected,
}

/// A session's running busy period.
#[derive(Clone)]
pub(super) struct Turn {
    pub(super) shared: Arc<Shared>,
    pub(super) id: String,
    epoch: u64,
    pub(super) cancel: CancellationToken,
}

/// A prompt being worked on.
pub(super) struct Prompt {
    /// Message id of the send.
    pub(super) message: String,
    pub(super) interaction: String,
    /// Model rounds so far: `turnId`.
    pub(super) round: usize,
    pub(super) model: String,
}

/// Starts a busy period, unless one runs that will see the queue.
pub(super) fn start(shared: &Arc<Shared>, state: &mut State, id: &str) {
    let Some(turn) = begin(shared, state, id) else {
        return;
    };
    shared.tasks.spawn(async move {
        turn.shared.awake().await;
        if turn
            .emit("pending_messages.modified", "{}", Life::Ephemeral)
            .is_ok()
        {
            turn.work().await;
        }
    });
}

/// Goes on with a tool call that an earlier process left unanswered.
pub(super) fn take_up(shared: &Arc<Shared>, state: &mut State, id: &str, data: Value) {
    let Some(turn) = begin(shared, state, id) else {
        return;
    };
    let Some(answered) = tool::expect_again(state, id, &data) else {
        return;
    };
    shared.tasks.spawn(async move {
        let ended = turn.finish_tool(&data, answered).await;
        if turn.settle(ended).is_ok() {
            turn.work().await;
        }
    });
}

fn begin(shared: &Arc<Shared>, state: &mut State, id: &str) -> Option<Turn> {
    let session = state.sessions.get_mut(id)?;
    if session.busy.is_some() {
        return None;
    }
    let cancel = shared.stopped.child_token();
    session.busy = Some(Busy {
        cancel: cancel.clone(),
        state: TurnState::Running,
        round: None,
    });
    Some(Turn {
        shared: shared.clone(),
        id: id.to_owned(),
        epoch: session.epoch,
        cancel,
    })
}

/// Asks the last attached connection's `sessionEnd` hook, then closes the session.
pub(super) fn session_end(shared: &Arc<Shared>, state: &mut State, call: Call, id: &str) {
    let Some(session) = state.sessions.get(id) else {
        return;
    };
    let turn = Turn {
        shared: shared.clone(),
        id: id.to_owned(),
        epoch: session.epoch,
        cancel: shared.stopped.child_token(),
    };
    shared.tasks.spawn(async move {
        let input = format!(
            r#"{{"reason":"user_exit","sessionId":"{}","timestamp":{},"cwd":"{WORK}"}}"#,
            turn.id,
            event::now_millis()
        );
        // Whatever the hook says, the session closes.
        let _ = turn.hook("sessionEnd", &input).await;
        let mut state = turn.shared.lock();
        super::opening::close_last(&turn.shared, &mut state, &call, &turn.id);
    });
}

impl Turn {
    /// Works with the session. `Err`: it was closed.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut State, &str) -> R) -> Result<R, Cut> {
        let mut state = self.shared.lock();
        let session = state.sessions.get(&self.id);
        if session.is_none_or(|session| session.epoch != self.epoch) {
            return Err(Cut);
        }
        Ok(work(&mut state, &self.id))
    }

    pub(super) fn session<R>(&self, work: impl FnOnce(&mut Session) -> R) -> Result<R, Cut> {
        self.with(|state, id| state.sessions.get_mut(id).map(work))?
            .ok_or(Cut)
    }

    /// Sends an event. `Err`: the session was closed.
    pub(super) fn emit(&self, kind: &str, data: &str, life: Life) -> Result<(), Cut> {
        self.with(|state, id| self.shared.emit(state, id, kind, data, life))
            .map(drop)
    }

    /// Sends an event of a turn that must still be running.
    pub(super) fn running(&self, kind: &str, data: &str, life: Life) -> Result<(), Cut> {
        self.with(|state, id| {
            // Looked at under the lock: after `abort` nothing of the turn may follow.
            if self.cancel.is_cancelled() {
                return Err(Cut);
            }
            self.shared.emit(state, id, kind, data, life);
            Ok(())
        })?
    }

    /// Waits for somebody's answer. `Err`: the turn ended first.
    pub(super) async fn until<T>(&self, answer: impl Future<Output = T>) -> Result<T, Cut> {
        let answer = self.cancel.run_until_cancelled(answer).await.ok_or(Cut)?;
        self.shared.awake().await;
        Ok(answer)
    }

    async fn work(mut self) {
        loop {
            let next = self.session(|session| {
                // After an abort the idle events come before the next prompt.
                let busy = session.busy.as_ref();
                let running = busy.is_some_and(|busy| busy.state == TurnState::Running);
                running.then(|| session.queue.pop_front()).flatten()
            });
            let Ok(next) = next else { return };
            let ended = match next {
                Some(sent) => {
                    let ended = self.prompt(sent).await;
                    self.settle(ended)
                }
                None => match self.rest() {
                    Ok(Some(cancel)) => {
                        self.cancel = cancel;
                        Ok(())
                    }
                    Ok(None) | Err(Cut) => return,
                },
            };
            if ended.is_err() {
                return;
            }
        }
    }

    /// Says how a prompt ended, where that is more than its last event.
    fn settle(&self, ended: Result<Ended, Cut>) -> Result<(), Cut> {
        match ended {
            Ok(Ended::Done) => Ok(()),
            Ok(Ended::Rejected) => {
                self.emit("abort", r#"{"reason":"user_initiated"}"#, Life::Kept)?;
                let text = r#"{"infoType":"cancellation","message":"Operation cancelled by user"}"#;
                self.emit("session.info", text, Life::Ephemeral)
            }
            Err(Cut) => {
                // Aborted, not closed: the turn's end is still to be told.
                let round = self.session(|session| session.busy.as_mut()?.round.take())?;
                if let Some(round) = round {
                    let data = format!(r#"{{"turnId":"{round}"}}"#);
                    self.emit("assistant.turn_end", &data, Life::Kept)?;
                }
                self.emit("pending_messages.modified", "{}", Life::Ephemeral)
            }
        }
    }

    /// Nothing is queued: goes idle. `Some`: sends came in the last moment, go on with this token.
    fn rest(&self) -> Result<Option<CancellationToken>, Cut> {
        self.with(|state, id| {
            let session = state.sessions.get_mut(id)?;
            let aborted = session
                .busy
                .as_ref()
                .is_some_and(|busy| busy.state == TurnState::Aborted);
            if !aborted && !session.queue.is_empty() {
                return Some(self.cancel.clone());
            }
            let mode = session.mode.clone();
            lifetime::flush(&self.shared, state, id);
            let (short, long) = if aborted {
                (
                    r#"{"aborted":true}"#,
                    format!(r#"{{"aborted":true,"mode":"{mode}"}}"#),
                )
            } else {
                ("{}", format!(r#"{{"mode":"{mode}"}}"#))
            };
            self.shared
                .emit(state, id, "assistant.idle", short, Life::Ephemeral);
            self.shared
                .emit(state, id, "session.idle", &long, Life::Ephemeral);
            let session = state.sessions.get_mut(id)?;
            let waiters = std::mem::take(&mut session.waiters);
            let next = (!session.queue.is_empty()).then(|| {
                let cancel = self.shared.stopped.child_token();
                session.busy = Some(Busy {
                    cancel: cancel.clone(),
                    state: TurnState::Running,
                    round: None,
                });
                cancel
            });
            if next.is_none() {
                session.busy = None;
            }
            for waiter in waiters {
                let result = format!(r#"{{"messageId":"{}"}}"#, waiter.message);
                state.ok(&waiter.call, &result);
            }
            next
        })
    }

    async fn prompt(&self, sent: Sent) -> Result<Ended, Cut> {
        self.shared.awake().await;
        let script = Script::read(&sent.prompt);
        let (fresh, first, model) = self.session(|session| {
            let first = session.summary.is_none();
            if first {
                session.summary = Some(sent.prompt.clone());
            }
            let fresh = std::mem::replace(&mut session.fresh, false);
            (fresh, first, session.model.clone().unwrap_or_default())
        })?;
        let mut prompt = Prompt {
            message: sent.message.clone(),
            interaction: self.shared.numbers.uuid(),
            round: 0,
            model,
        };
        self.open(&sent, &prompt, fresh, first).await?;
        for call in &script.tools {
            self.model_call().await?;
            if self.tool(&mut prompt, call).await? == Ended::Rejected {
                return Ok(Ended::Rejected);
            }
        }
        self.model_call().await?;
        self.reply(&prompt, &script).await?;
        self.stop_hook().await?;
        self.requeue_steering()?;
        Ok(Ended::Done)
    }

    /// From the prompt to the first round.
    async fn open(
        &self,
        sent: &Sent,
        prompt: &Prompt,
        fresh: bool,
        first: bool,
    ) -> Result<(), Cut> {
        let text = quoted(&sent.prompt);
        let stamp = event::now_millis();
        let common = format!(r#""timestamp":{stamp},"cwd":"{WORK}""#);
        let id = &self.id;
        if fresh {
            let input =
                format!(r#"{{"source":"new","initialPrompt":{text},"sessionId":"{id}",{common}}}"#);
            self.hook("sessionStart", &input).await?;
        }
        if first {
            let data = format!(r#"{{"title":{text}}}"#);
            self.running("session.title_changed", &data, Life::Ephemeral)?;
        }
        let model = quoted(&prompt.model);
        let data = format!(r#"{{"model":{model}}}"#);
        self.running("session.tools_updated", &data, Life::Ephemeral)?;
        let input = format!(r#"{{"sessionId":"{id}","prompt":{text},{common}}}"#);
        self.hook("userPromptSubmitted", &input).await?;
        let when = now().replace('Z', "+00:00");
        let transformed = quoted(&format!(
            "<current_datetime>{when}</current_datetime>\n\n{}",
            sent.prompt
        ));
        let input = format!(
            r#"{{"sessionId":"{id}","prompt":{text},"transformedPrompt":{transformed},{common}}}"#
        );
        self.hook("userPromptTransformed", &input).await?;
        let data = format!(
            r#"{{"content":{text},"transformedContent":{transformed},"messageId":"{}","supportedNativeDocumentMimeTypes":[],"delivery":"{}","interactionId":"{}","turnId":"0","parentAgentTaskId":"{}"}}"#,
            sent.message,
            sent.delivery,
            prompt.interaction,
            self.shared.numbers.uuid(),
        );
        // From now on the session has a log.
        self.session(|session| session.has_turn = true)?;
        self.running("user.message", &data, Life::Kept)?;
        let words = "You are simulated. ".repeat(self.shared.options.system_message / 19 + 1);
        let words = quoted(&words[..self.shared.options.system_message]);
        let data = format!(r#"{{"role":"system","content":{words}}}"#);
        self.running("system.message", &data, Life::Kept)?;
        self.round_start(prompt)
    }

    fn round_start(&self, prompt: &Prompt) -> Result<(), Cut> {
        let Prompt {
            round, interaction, ..
        } = prompt;
        let data = format!(r#"{{"turnId":"{round}","interactionId":"{interaction}"}}"#);
        self.running("assistant.turn_start", &data, Life::Kept)?;
        self.set_round(Some(*round))
    }

    fn set_round(&self, round: Option<usize>) -> Result<(), Cut> {
        self.session(|session| {
            if let Some(busy) = &mut session.busy {
                busy.round = round;
            }
        })
    }

    pub(super) fn round_end(&self, prompt: &Prompt) -> Result<(), Cut> {
        let data = format!(r#"{{"turnId":"{}"}}"#, prompt.round);
        self.running("assistant.turn_end", &data, Life::Kept)?;
        self.set_round(None)
    }

    /// The next model round after a tool: steering reaches the turn here.
    pub(super) fn next_round(&self, prompt: &mut Prompt) -> Result<(), Cut> {
        self.round_end(prompt)?;
        prompt.round += 1;
        self.round_start(prompt)?;
        for sent in self.session(|session| std::mem::take(&mut session.steering))? {
            self.running("pending_messages.modified", "{}", Life::Ephemeral)?;
            let data = format!(
                r#"{{"content":{},"messageId":"{}","delivery":"steering","turnId":"{}","interactionId":"{}"}}"#,
                quoted(&sent.prompt),
                sent.message,
                prompt.round,
                prompt.interaction,
            );
            self.running("user.message", &data, Life::Kept)?;
        }
        Ok(())
    }

    /// Steering that found no tool round is queued, before everything else.
    fn requeue_steering(&self) -> Result<(), Cut> {
        let requeued = self.session(|session| {
            let requeued = session.steering.len();
            for mut sent in std::mem::take(&mut session.steering).into_iter().rev() {
                sent.delivery = "queued";
                session.queue.push_front(sent);
            }
            requeued
        })?;
        for _ in 0..requeued {
            self.emit("pending_messages.modified", "{}", Life::Ephemeral)?;
        }
        Ok(())
    }

    /// Asks the provider of model calls, if there is one, and waits for the end of its answer.
    async fn model_call(&self) -> Result<(), Cut> {
        let request = self.shared.numbers.uuid();
        let waits = self.with(|state, id| {
            let provider = state.llm_provider.as_ref()?.connection;
            let start = format!(
                r#"{{"requestId":"{request}","method":"POST","url":"http://127.0.0.1:1/v1/chat/completions","headers":{{"content-type":["application/json"]}},"sessionId":"{id}","agentId":"{id}","interactionType":"conversation-agent","transport":"http"}}"#
            );
            let chunk = format!(r#"{{"requestId":"{request}","data":"{{}}","end":true}}"#);
            // The answers to these two say only that they arrived.
            let heard = || Asked::Provider(oneshot::channel().0);
            state.ask(provider, "llmInference.httpRequestStart", &start, heard());
            state.ask(provider, "llmInference.httpRequestChunk", &chunk, heard());
            let (done, answered) = oneshot::channel();
            state.model_calls.insert(request.clone(), done);
            Some(answered)
        })?;
        let Some(answered) = waits else { return Ok(()) };
        let answered = self.until(answered).await;
        self.shared.lock().model_calls.remove(&request);
        answered.map(drop)
    }

    pub(super) async fn reply(&self, prompt: &Prompt, script: &Script) -> Result<(), Cut> {
        if script.reply == Reply::Failure {
            self.round_end(prompt)?;
            let data = format!(
                r#"{{"errorType":"query","message":"The simulated model failed","originatingMessageId":"{}"}}"#,
                prompt.message
            );
            return self.running("session.error", &data, Life::Kept);
        }
        let message = self.shared.numbers.uuid();
        let content = self.stream(&message, script).await?;
        self.usage(prompt)?;
        let data = format!(
            r#"{{"messageId":"{message}","originatingMessageId":"{}","model":{},"content":{},"toolRequests":[],"interactionId":"{}","turnId":"{}","rte":false,"apiCallId":"chatcmpl-{:012x}"}}"#,
            prompt.message,
            quoted(&prompt.model),
            quoted(&content),
            prompt.interaction,
            prompt.round,
            self.shared.numbers.next() >> 16,
        );
        self.running("assistant.message", &data, Life::Kept)?;
        self.round_end(prompt)
    }

    pub(super) fn usage(&self, prompt: &Prompt) -> Result<(), Cut> {
        let model = quoted(&prompt.model);
        let data = format!(
            r#"{{"model":{model},"modelDisplayName":{model},"inputTokens":10,"outputTokens":5,"cacheReadTokens":0,"cacheWriteTokens":0,"cost":0.0,"duration":1,"initiator":"user"}}"#
        );
        self.running("assistant.usage", &data, Life::Ephemeral)
    }

    async fn stop_hook(&self) -> Result<(), Cut> {
        let id = &self.id;
        let input = format!(
            r#"{{"sessionId":"{id}","transcriptPath":"{ROOT}/session-state/{id}/events.jsonl","stopReason":"end_turn","stop_hook_active":false,"timestamp":{},"cwd":"{WORK}"}}"#,
            event::now_millis()
        );
        self.hook("agentStop", &input).await.map(drop)
    }

    /// Asks every connection that has hooks, and waits for all of them. An error, or the end of a
    /// connection, counts as an empty answer.
    pub(super) async fn hook(&self, kind: &str, input: &str) -> Result<Vec<Value>, Cut> {
        let invocation = self.shared.numbers.uuid();
        let answers = self.with(|state, id| {
            let listeners = state.listeners(id, |attachment| attachment.hooks);
            if listeners.is_empty() {
                return Vec::new();
            }
            let data = format!(
                r#"{{"hookInvocationId":"{invocation}","hookType":"{kind}","input":{input}}}"#
            );
            self.shared.emit(state, id, "hook.start", &data, Life::Kept);
            let params = format!(r#"{{"sessionId":"{id}","hookType":"{kind}","input":{input}}}"#);
            let ask = |connection| {
                let (done, answer) = oneshot::channel();
                state
                    .ask(connection, "hooks.invoke", &params, Asked::Hook(done))
                    .then_some(answer)
            };
            listeners.into_iter().filter_map(ask).collect()
        })?;
        if answers.is_empty() {
            return Ok(Vec::new());
        }
        let mut outputs = Vec::new();
        for answer in answers {
            let answer = self.until(answer).await?.ok().flatten();
            outputs.extend(answer.and_then(|mut answer| Some(answer.get_mut("output")?.take())));
        }
        let data =
            format!(r#"{{"hookInvocationId":"{invocation}","hookType":"{kind}","success":true}}"#);
        self.emit("hook.end", &data, Life::Kept)?;
        Ok(outputs)
    }
}
