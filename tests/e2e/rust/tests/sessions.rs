//! The features of a session through the official Rust SDK, against one CLI or Taxiway.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use github_copilot_sdk::{
    Error,
    handler::{PermissionHandler, PermissionResult, UserInputHandler, UserInputResponse},
    hooks::{HookEvent, HookOutput, PreToolUseOutput, SessionHooks},
    tool::ToolHandler,
    types::{
        MessageOptions, PermissionRequestData, RequestId, SessionId, Tool, ToolInvocation,
        ToolResult,
    },
};
use serde_json::json;
use taxiway_e2e::{ask, config, connect, is_taxiway, new_id, owners, resume};

/// Bounds a test in time, whatever it waits for.
async fn bounded(test: impl Future<Output = Result<(), Error>>) {
    tokio::time::timeout(Duration::from_secs(60), test)
        .await
        .expect("within 60 s")
        .expect("no error");
}

/// What the model was told by its tools: the answer to `[[results]]`.
fn results(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[derive(Clone, Default)]
struct Weather(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl ToolHandler for Weather {
    async fn call(&self, invocation: ToolInvocation) -> Result<ToolResult, Error> {
        let city = invocation.arguments["city"]
            .as_str()
            .unwrap_or("nowhere")
            .to_owned();
        let text = format!("sunny in {city}");
        self.0.lock().unwrap().push(city);
        Ok(ToolResult::Text(text))
    }
}

impl Weather {
    fn tool(&self) -> Tool {
        let city = json!({ "type": "string" });
        let parameters =
            json!({ "type": "object", "properties": { "city": city }, "required": ["city"] });
        Tool::new("get_weather")
            .with_description("Weather of a city")
            .with_parameters(parameters)
            .with_handler(Arc::new(self.clone()))
    }

    fn cities(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn twelve_sessions_on_one_connection() {
    bounded(async {
        let client = connect().await?;
        let mut sessions = Vec::new();
        let mut used = BTreeSet::new();
        for i in 0..12 {
            let id = new_id(&format!("rs-twelve-{i}"));
            sessions.push((client.create_session(config(&id)).await?, id));
        }
        for (i, (session, id)) in sessions.iter().enumerate() {
            assert_eq!(
                ask(session, &format!("[[say answer {i}]]")).await?,
                format!("answer {i}")
            );
            let ports = owners(id).await;
            assert_eq!(ports.len(), 1, "{id} is open on {ports:?}");
            used.extend(ports);
        }
        assert_eq!(used.len(), if is_taxiway() { 3 } else { 1 });
        let listed = client.list_sessions(None).await?;
        let listed: BTreeSet<String> = listed
            .iter()
            .map(|session| session.session_id.to_string())
            .collect();
        assert!(sessions.iter().all(|(_, id)| listed.contains(id)));
        client.stop().await.expect("a clean stop");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn streaming_deltas_join_to_the_text() {
    bounded(async {
        let client = connect().await?;
        let session = client.create_session(config(&new_id("rs-stream"))).await?;
        let mut events = session.subscribe();
        let text = ask(&session, "[[len 120]]").await?;
        let mut deltas = String::new();
        loop {
            let event = events.recv().await.expect("the event stream goes on");
            match event.event_type.as_str() {
                "assistant.message_delta" => {
                    deltas.push_str(event.data["deltaContent"].as_str().unwrap_or_default());
                }
                "session.idle" => break,
                _ => {}
            }
        }
        let expected: Vec<String> = (0..120).map(|i| format!("tok{i}")).collect();
        assert_eq!(text, expected.join(" "));
        assert_eq!(deltas, text);
        client.stop().await.expect("a clean stop");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn tools_one_and_parallel() {
    bounded(async {
        let client = connect().await?;
        let weather = Weather::default();
        let config = config(&new_id("rs-tools")).with_tools([weather.tool()]);
        let session = client.create_session(config).await?;
        let prompt = r#"[[tool get_weather {"city":"Paris"}]] [[results]]"#;
        assert_eq!(results(&ask(&session, prompt).await?), ["sunny in Paris"]);
        let prompt = r#"[[ptool get_weather {"city":"Rome"}]] [[ptool get_weather {"city":"Oslo"}]]
            [[results]]"#;
        let mut both = results(&ask(&session, prompt).await?);
        both.sort();
        assert_eq!(both, ["sunny in Oslo", "sunny in Rome"]);
        assert_eq!(weather.cities().len(), 3);
        client.stop().await.expect("a clean stop");
        Ok(())
    })
    .await;
}

struct OnlyGood;

#[async_trait]
impl PermissionHandler for OnlyGood {
    async fn handle(
        &self,
        _session: SessionId,
        _request: RequestId,
        request: PermissionRequestData,
    ) -> PermissionResult {
        let asked = serde_json::to_string(&request).unwrap_or_default();
        if asked.contains("good") {
            PermissionResult::approve_once()
        } else {
            PermissionResult::reject("not here".to_owned())
        }
    }
}

#[tokio::test]
async fn permissions_approve_and_reject() {
    bounded(async {
        let client = connect().await?;
        let config = config(&new_id("rs-permit")).with_permission_handler(Arc::new(OnlyGood));
        let session = client.create_session(config).await?;
        let shell = |word: &str| {
            let call = json!({ "command": format!("echo made-{word} > {word}; cat {word}"),
                "description": "x" });
            format!("[[tool bash {call}]] [[results]]")
        };
        let good = results(&ask(&session, &shell("good")).await?);
        assert!(good[0].contains("made-good"), "{good:?}");
        let bad = results(&ask(&session, &shell("bad")).await?);
        assert!(
            bad[0].contains("not here") && !bad[0].contains("made-bad"),
            "{bad:?}"
        );
        client.stop().await.expect("a clean stop");
        Ok(())
    })
    .await;
}

struct TooHot;

#[async_trait]
impl SessionHooks for TooHot {
    async fn on_hook(&self, event: HookEvent) -> HookOutput {
        match event {
            HookEvent::PreToolUse { input, .. } if input.tool_args["city"] == "Hell" => {
                HookOutput::PreToolUse(PreToolUseOutput {
                    permission_decision: Some("deny".to_owned()),
                    permission_decision_reason: Some("too hot".to_owned()),
                    ..Default::default()
                })
            }
            _ => HookOutput::None,
        }
    }
}

struct Yellow;

#[async_trait]
impl UserInputHandler for Yellow {
    async fn handle(
        &self,
        _session: SessionId,
        _question: String,
        _choices: Option<Vec<String>>,
        _allow_freeform: Option<bool>,
    ) -> Option<UserInputResponse> {
        Some(UserInputResponse {
            answer: "blue, no, yellow".to_owned(),
            was_freeform: true,
        })
    }
}

#[tokio::test]
async fn hooks_and_user_input() {
    bounded(async {
        let client = connect().await?;
        let weather = Weather::default();
        let config = config(&new_id("rs-hooks"))
            .with_tools([weather.tool()])
            .with_hooks(Arc::new(TooHot))
            .with_user_input_handler(Arc::new(Yellow));
        let session = client.create_session(config).await?;
        let prompt = r#"[[tool get_weather {"city":"Hell"}]] [[tool get_weather {"city":"Bonn"}]]
            [[ask Which colour?]] [[results]]"#;
        let told = results(&ask(&session, prompt).await?);
        assert!(told[0].contains("too hot"), "{told:?}");
        assert_eq!(told[1], "sunny in Bonn");
        assert!(told[2].contains("blue, no, yellow"), "{told:?}");
        assert_eq!(weather.cities(), ["Bonn"]);
        client.stop().await.expect("a clean stop");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn abort_resume_messages_delete() {
    bounded(async {
        let client = connect().await?;
        let id = new_id("rs-life");
        let session = client.create_session(config(&id)).await?;
        let mut events = session.subscribe();
        session
            .send(MessageOptions::new(format!(
                "alpha [[len 5]] [[hold {id}]]"
            )))
            .await?;
        loop {
            let event = events.recv().await.expect("the event stream goes on");
            if event.event_type == "assistant.message_delta" {
                session.abort().await?;
            }
            if event.event_type == "session.idle" {
                assert_eq!(event.data["aborted"], true);
                break;
            }
        }
        session.disconnect().await?;

        let again = client.resume_session(resume(&id)).await?;
        assert_eq!(owners(&id).await.len(), 1);
        let history = results(&ask(&again, "beta [[history]]").await?);
        assert!(
            history[0].contains("alpha") && history[1].contains("beta"),
            "{history:?}"
        );
        let messages = again.get_events().await?;
        assert_eq!(
            messages
                .iter()
                .filter(|e| e.event_type == "user.message")
                .count(),
            2
        );
        again.disconnect().await?;

        let session_id = SessionId::from(id.as_str());
        client.delete_session(&session_id).await?;
        let gone = client
            .resume_session(resume(&id))
            .await
            .err()
            .expect("it was deleted");
        assert!(
            gone.to_string()
                .to_lowercase()
                .contains("session not found"),
            "{gone}"
        );
        client.stop().await.expect("a clean stop");
        Ok(())
    })
    .await;
}
