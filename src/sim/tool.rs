//! One tool call of a turn: hooks, permission, the client's answer.
//!
//! Tools are the clients' own, or `ask_user`; the simulated server runs nothing itself.

use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    event::{self, Life, quoted},
    script::ToolCall,
    server::WORK,
    session::{Decision, Permission, Tool, ToolResult},
    state::{Asked, State, ToolWait},
    turn::{Cut, Ended, Prompt, Turn},
};

/// What happened to a tool call.
enum Outcome {
    Result(ToolResult),
    /// Not run: the words and the code of the failure.
    Refused(&'static str, &'static str),
    /// A person said no, which ends the turn.
    Rejected,
}

/// Registers the wait for a tool call of an earlier process again.
pub(super) fn expect_again(
    state: &mut State,
    session: &str,
    data: &Value,
) -> Option<oneshot::Receiver<ToolResult>> {
    let request = data.get("requestId")?.as_str()?;
    Some(expect(state, session, request))
}

fn expect(state: &mut State, session: &str, request: &str) -> oneshot::Receiver<ToolResult> {
    let (done, answered) = oneshot::channel();
    let wait = ToolWait {
        session: session.to_owned(),
        done,
    };
    state.tool_calls.insert(request.to_owned(), wait);
    answered
}

impl Turn {
    /// One model round that calls one tool.
    pub(super) async fn tool(&self, prompt: &mut Prompt, call: &ToolCall) -> Result<Ended, Cut> {
        let tool_call = format!("call_{:016x}", self.shared.numbers.next());
        let ToolCall { name, arguments } = call;
        let (name, model) = (quoted(name), quoted(&prompt.model));
        let data = format!(
            r#"{{"toolCallId":"{tool_call}","toolName":{name},"toolType":"function","inputDelta":{}}}"#,
            quoted(arguments)
        );
        self.running("assistant.tool_call_delta", &data, Life::Ephemeral)?;
        self.usage(prompt)?;
        let about = match question(call) {
            Some(question) => {
                format!(r#","intentionSummary":{question},"toolTitle":"Asking user""#)
            }
            None => String::new(),
        };
        let data = format!(
            r#"{{"messageId":"{}","originatingMessageId":"{}","model":{model},"content":"","toolRequests":[{{"toolCallId":"{tool_call}","name":{name},"arguments":{arguments},"type":"function"{about}}}],"interactionId":"{}","turnId":"{}","rte":false,"apiCallId":"chatcmpl-{:012x}"}}"#,
            self.shared.numbers.uuid(),
            prompt.message,
            prompt.interaction,
            prompt.round,
            self.shared.numbers.next() >> 16,
        );
        self.running("assistant.message", &data, Life::Kept)?;
        let data = format!(
            r#"{{"toolCallId":"{tool_call}","toolName":{name},"arguments":{arguments},"turnId":"{}","model":{model}}}"#,
            prompt.round
        );
        self.running("tool.execution_start", &data, Life::Kept)?;
        let outcome = self.execute(call, &tool_call).await?;
        let result = match &outcome {
            Outcome::Result(result) => result.as_ref().map_err(|text| (text.as_str(), "failure")),
            Outcome::Refused(text, code) => Err((*text, *code)),
            Outcome::Rejected => Err(("The user rejected this tool call.", "rejected")),
        };
        if let Outcome::Result(result) = &outcome {
            self.after_hook(call, result).await?;
        }
        self.completed(prompt, &tool_call, result)?;
        if matches!(outcome, Outcome::Rejected) {
            self.round_end(prompt)?;
            return Ok(Ended::Rejected);
        }
        self.next_round(prompt)?;
        Ok(Ended::Done)
    }

    fn completed(
        &self,
        prompt: &Prompt,
        tool_call: &str,
        result: Result<&String, (&str, &str)>,
    ) -> Result<(), Cut> {
        let tail = match result {
            Ok(text) => {
                let text = quoted(text);
                format!(r#""success":true,"result":{{"content":{text},"detailedContent":{text}}}"#)
            }
            Err((text, code)) => {
                let text = quoted(text);
                format!(r#""success":false,"error":{{"message":{text},"code":"{code}"}}"#)
            }
        };
        let data = format!(
            r#"{{"toolCallId":"{tool_call}","model":{},"interactionId":"{}","turnId":"{}","rte":false,{tail}}}"#,
            quoted(&prompt.model),
            prompt.interaction,
            prompt.round,
        );
        self.running("tool.execution_complete", &data, Life::Kept)
    }

    async fn execute(&self, call: &ToolCall, tool_call: &str) -> Result<Outcome, Cut> {
        let verdict = self.before_hook(call).await?;
        if verdict.as_deref() == Some("deny") {
            return Ok(Outcome::Refused("Denied by preToolUse hook.", "denied"));
        }
        if call.name == "ask_user" {
            return self.ask_user(call, tool_call).await;
        }
        let known = self.with(|state, id| {
            let session = state.sessions.get(id)?;
            let tool = session.tools.get(&call.name)?.clone();
            Some((
                tool,
                session.approve_all,
                session.attached.iter().any(|at| at.permission),
            ))
        })?;
        let Some((tool, approve_all, may_ask)) = known else {
            return Ok(unknown(&call.name));
        };
        if tool.skip_permission != Some(true) && !approve_all && verdict.as_deref() != Some("allow")
        {
            if !may_ask {
                return Ok(Outcome::Refused(
                    "Permission denied and could not request permission from user. Copilot needed the user's approval and no one could answer.",
                    "denied",
                ));
            }
            match self.permission(call, &tool, tool_call).await? {
                Decision::Approved => {}
                Decision::Rejected => return Ok(Outcome::Rejected),
            }
        }
        self.external(call, tool_call).await.map(Outcome::Result)
    }

    async fn permission(
        &self,
        call: &ToolCall,
        tool: &Tool,
        tool_call: &str,
    ) -> Result<Decision, Cut> {
        let request = self.shared.numbers.uuid();
        let (name, args) = (quoted(&call.name), &call.arguments);
        let description = quoted(&tool.description);
        let skip = tool
            .skip_permission
            .map_or_else(String::new, |skip| format!(r#","skipPermission":{skip}"#));
        let about = format!(r#""toolName":{name},"toolDescription":{description},"args":{args}"#);
        let shown = format!(r#"{{"kind":"custom-tool",{about},"toolCallId":"{tool_call}"}}"#);
        let data = format!(
            r#"{{"requestId":"{request}","permissionRequest":{{"kind":"custom-tool","toolCallId":"{tool_call}",{about}{skip}}},"promptRequest":{shown},"agentMode":"interactive","permissionMode":"manual","ownerSessionId":"{}"}}"#,
            self.id
        );
        let (decided, decision) = oneshot::channel();
        self.with(|state, id| {
            if let Some(session) = state.sessions.get_mut(id) {
                session.permissions.push(Permission {
                    id: request.clone(),
                    request: format!(r#"{{"requestId":"{request}","request":{shown}}}"#),
                    decided,
                });
            }
        })?;
        self.running("permission.requested", &data, Life::Kept)?;
        let decision = self.until(decision).await?.map_err(|_| Cut)?;
        let kind = match decision {
            Decision::Approved => "approved",
            Decision::Rejected => "denied-interactively-by-user",
        };
        let data = format!(
            r#"{{"requestId":"{request}","toolCallId":"{tool_call}","result":{{"kind":"{kind}"}}}}"#
        );
        self.running("permission.completed", &data, Life::Kept)?;
        Ok(decision)
    }

    /// Has the client run its tool. It waits for ever if nobody answers, like the real server.
    async fn external(&self, call: &ToolCall, tool_call: &str) -> Result<ToolResult, Cut> {
        let request = self.shared.numbers.uuid();
        let answered = self.with(|state, id| expect(state, id, &request))?;
        let data = format!(
            r#"{{"requestId":"{request}","sessionId":"{}","toolCallId":"{tool_call}","toolName":{},"arguments":{},"workingDirectory":"{WORK}"}}"#,
            self.id,
            quoted(&call.name),
            call.arguments,
        );
        self.running("external_tool.requested", &data, Life::Kept)?;
        self.until(answered).await?.map_err(|_| Cut)
    }

    /// Ends the turn of a tool call that an earlier process asked for.
    pub(super) async fn finish_tool(
        &self,
        data: &Value,
        answered: oneshot::Receiver<ToolResult>,
    ) -> Result<Ended, Cut> {
        let result = self.until(answered).await?.map_err(|_| Cut)?;
        let text = |key| data.get(key).and_then(Value::as_str).unwrap_or_default();
        let mut prompt = Prompt {
            message: self.shared.numbers.uuid(),
            interaction: self.shared.numbers.uuid(),
            round: 0,
            model: String::new(),
        };
        let result = result.as_ref().map_err(|text| (text.as_str(), "failure"));
        self.completed(&prompt, text("toolCallId"), result)?;
        self.next_round(&mut prompt)?;
        self.reply(
            &prompt,
            &super::script::Script::read("the tool has answered"),
        )
        .await?;
        Ok(Ended::Done)
    }

    /// Puts a question to everybody who takes questions; the first answer wins.
    async fn ask_user(&self, call: &ToolCall, tool_call: &str) -> Result<Outcome, Cut> {
        let question = question(call).unwrap_or_default();
        let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
        let choices = arguments.get("choices").cloned().unwrap_or_default();
        // The event says `null` where the request says nothing.
        let offered = if choices.is_null() {
            String::new()
        } else {
            format!(r#""choices":{choices},"#)
        };
        let request = self.shared.numbers.uuid();
        let (done, answer) = oneshot::channel();
        let asked = self.with(|state, id| {
            let listeners = state.listeners(id, |attachment| attachment.user_input);
            if listeners.is_empty() {
                return false;
            }
            if let Some(session) = state.sessions.get_mut(id) {
                session.inputs.insert(request.clone(), done);
            }
            let data = format!(
                r#"{{"requestId":"{request}","question":{question},"choices":{choices},"allowFreeform":true,"toolCallId":"{tool_call}"}}"#
            );
            self.shared.emit(state, id, "user_input.requested", &data, Life::Ephemeral);
            let params = format!(
                r#"{{"sessionId":"{id}","question":{question},{offered}"allowFreeform":true}}"#
            );
            for connection in listeners {
                let asked = Asked::Input {
                    session: id.to_owned(),
                    request: request.clone(),
                };
                state.ask(connection, "userInput.request", &params, asked);
            }
            true
        })?;
        if !asked {
            return Ok(unknown(&call.name));
        }
        let answer = self.until(answer).await?.map_err(|_| Cut)?;
        let data = format!(
            r#"{{"answer":{},"wasFreeform":true,"requestId":"{request}"}}"#,
            quoted(&answer)
        );
        self.running("user_input.completed", &data, Life::Ephemeral)?;
        Ok(Outcome::Result(Ok(format!("User responded: {answer}"))))
    }

    /// The `preToolUse` hooks' decision: one `deny` outweighs everything.
    async fn before_hook(&self, call: &ToolCall) -> Result<Option<String>, Cut> {
        let outputs = self.hook("preToolUse", &self.hook_input(call, "")).await?;
        let decision =
            |output: &Value| Some(output.get("permissionDecision")?.as_str()?.to_owned());
        let decisions: Vec<_> = outputs.iter().filter_map(decision).collect();
        let denied = decisions.iter().find(|decision| *decision == "deny");
        Ok(denied.or(decisions.first()).cloned())
    }

    async fn after_hook(&self, call: &ToolCall, result: &ToolResult) -> Result<(), Cut> {
        let (kind, more) = match result {
            Ok(text) => (
                "postToolUse",
                format!(
                    r#","toolResult":{{"textResultForLlm":{},"resultType":"success"}}"#,
                    quoted(text)
                ),
            ),
            Err(text) => (
                "postToolUseFailure",
                format!(r#","error":{}"#, quoted(text)),
            ),
        };
        self.hook(kind, &self.hook_input(call, &more))
            .await
            .map(drop)
    }

    fn hook_input(&self, call: &ToolCall, more: &str) -> String {
        format!(
            r#"{{"sessionId":"{}","timestamp":{},"cwd":"{WORK}","toolName":{},"toolArgs":{}{more}}}"#,
            self.id,
            event::now_millis(),
            quoted(&call.name),
            call.arguments,
        )
    }
}

/// The question of an `ask_user` call: JSON.
fn question(call: &ToolCall) -> Option<Value> {
    let arguments: Value = serde_json::from_str(&call.arguments).ok()?;
    (call.name == "ask_user").then(|| arguments.get("question").cloned().unwrap_or_default())
}

fn unknown(name: &str) -> Outcome {
    Outcome::Result(Err(format!("Tool '{name}' does not exist.")))
}
