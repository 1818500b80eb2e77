//! The commands against an admin server of the real kind, on loopback.

use tokio::{io::AsyncWriteExt, net::TcpListener};

use super::*;
use crate::control::admin::{
    server::Bounds,
    tests::{Served, serve},
};

fn client(served: &Served, token: Option<&str>) -> AdminClient {
    AdminClient::for_listener(served.address, token.map(Secret::new))
}

async fn table(client: &AdminClient, command: Command) -> String {
    client.run(&command, Output::Table).await.unwrap()
}

async fn value(client: &AdminClient, command: Command) -> Value {
    serde_json::from_str(&client.run(&command, Output::Json).await.unwrap()).unwrap()
}

fn set_state(backend: &str, state: StateChange, wait: Option<Duration>) -> Command {
    Command::SetState {
        backend: backend.into(),
        state,
        wait,
    }
}

#[tokio::test]
async fn status_is_a_table() {
    let served = serve(None, Bounds::default());
    {
        let mut backends = served.stage.backends.lock().unwrap();
        backends[1].health = "down".into();
        backends[1].ping_ms = None;
        backends[1].health_reason = Some("refused\u{1b}[2J".into());
    }
    assert_eq!(
        table(&client(&served, None), Command::Status).await,
        "ready, 2 of 2 backends usable\n\
         \n\
         BACKEND  ADDRESS        STATE  HEALTH  WEIGHT  SESSIONS  TURNS     PING  VERSION\n\
         cli-1    10.0.0.1:4321  ready  up           1         2      0  0.50 ms  1.0.102\n\
         cli-2    10.0.0.1:4321  ready  down         1         0      0        -  1.0.102\n\
         cli-2: refused\u{fffd}[2J\n"
    );
    {
        let mut backends = served.stage.backends.lock().unwrap();
        backends[0].away_seconds = Some(0.4);
        backends[1].released = true;
        backends[1].away_seconds = Some(75.2);
        backends[1].health_reason = Some("does not answer".into());
    }
    let told = table(&client(&served, None), Command::Status).await;
    for line in [
        "cli-1: away for 0s\n",
        "  down (released)  ",
        "cli-2: does not answer; away for 1m 15s, its sessions are opened elsewhere\n",
    ] {
        assert!(told.contains(line), "{line:?} is not in {told}");
    }
    *served.stage.readiness.lock().unwrap() = Readiness {
        ready: false,
        reasons: vec!["draining".into()],
        usable_backends: 1,
        ..Readiness::default()
    };
    let told = table(&client(&served, None), Command::Status).await;
    assert!(
        told.starts_with("not ready: draining, 1 of 2 backends usable\n"),
        "{told}"
    );
    let told = value(&client(&served, None), Command::Status).await;
    assert_eq!(told["ready"], false);
    assert_eq!(told["backends"][0]["name"], "cli-1");
}

#[tokio::test]
async fn sessions_are_listed() {
    let served = serve(None, Bounds::default());
    let client = client(&served, None);
    let sessions = |user: Option<&str>, limit| Command::Sessions {
        filter: SessionFilter {
            backend: None,
            user: user.map(str::to_owned),
        },
        limit,
    };
    assert_eq!(
        table(&client, sessions(Some("alice"), 100)).await,
        "SESSION  USER   BACKEND  STATE  CLIENTS  IDLE\n\
         a/b c    alice  cli-1    open         0     -\n\
         s-3      alice  cli-2    open         0     -\n"
    );
    let told = table(&client, sessions(None, 2)).await;
    assert_eq!(told.lines().count(), 4, "{told}");
    assert!(
        told.ends_with("there are more; raise --limit to see them\n"),
        "{told}"
    );
    let told = value(&client, sessions(None, 100)).await;
    assert_eq!(told["items"].as_array().unwrap().len(), 3);
    let explain = Command::Explain {
        session: "a/b c".into(),
        principal: None,
    };
    assert_eq!(
        table(&client, explain).await,
        "known: false\nsession: a/b c\n"
    );
    let explain = Command::Explain {
        session: "s".into(),
        principal: Some("a&b c".into()),
    };
    assert_eq!(table(&client, explain).await, "as: a&b c\nsession: s\n");
}

#[tokio::test]
async fn backends_are_changed() {
    let served = serve(Some("t"), Bounds::default());
    let client = client(&served, Some("t"));
    assert_eq!(
        table(&client, set_state("cli-1", StateChange::Drain, None)).await,
        "cli-1: drain, up, weight 1, 2 open sessions, 0 open turns\n"
    );
    let weight = Command::SetWeight {
        backend: "cli-1".into(),
        weight: 5,
    };
    assert_eq!(value(&client, weight).await["backend"]["weight"], 5);
    assert_eq!(table(&client, Command::Reload).await, "nothing changed\n");
}

#[tokio::test]
async fn drain_waits_for_the_sessions() {
    let served = serve(None, Bounds::default());
    let client = client(&served, None);
    let patience = Some(Duration::from_secs(30));
    let (told, ()) = tokio::join!(
        table(&client, set_state("cli-1", StateChange::Drain, patience)),
        async {
            // The first look comes after the state was changed.
            while served.stage.backends.lock().unwrap()[0].state != "drain" {
                tokio::task::yield_now().await;
            }
            served.stage.backends.lock().unwrap()[0].sessions_open = 0;
        }
    );
    assert_eq!(
        told,
        "cli-1: drain, up, weight 1, 0 open sessions, 0 open turns\n"
    );

    served.stage.backends.lock().unwrap()[0].sessions_open = 3;
    let hasty = set_state("cli-1", StateChange::Drain, Some(Duration::ZERO));
    let error = client.run(&hasty, Output::Table).await.unwrap_err();
    assert_eq!(error.exit_code(), 75);
    assert_eq!(
        error.to_string(),
        "cli-1 still has 3 open sessions, 0 of them in a turn"
    );
}

#[tokio::test]
async fn refusals_say_why() {
    let served = serve(Some("t"), Bounds::default());
    let refused = async |client: &AdminClient, command: Command| {
        let error = client.run(&command, Output::Table).await.unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
        error.to_string()
    };
    assert_eq!(
        refused(&client(&served, None), Command::Status).await,
        "a bearer token is needed"
    );
    let client = client(&served, Some("t"));
    assert_eq!(
        refused(&client, set_state("x/y", StateChange::Ready, None)).await,
        "there is no backend named \"x/y\""
    );
    *served.stage.reload.lock().unwrap() = Some(Err(json!("line 3: no")));
    assert_eq!(refused(&client, Command::Reload).await, "line 3: no");
    served.stage.readiness.lock().unwrap().usable_backends = 0;
    let probe = Command::Healthcheck(Probe::Pool);
    assert_eq!(
        refused(&client, probe).await,
        "not ready: no backend is usable"
    );
    assert_eq!(
        table(&client, Command::Healthcheck(Probe::Alive)).await,
        "ok\n"
    );
}

#[tokio::test]
async fn nobody_there_silence_and_nonsense() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = AdminClient::for_listener(listener.local_addr().unwrap(), None);
    // Connections wait in the listener's queue: nobody answers.
    let hasty = client.clone().with_timeout(Duration::from_millis(50));
    let error = hasty
        .run(&Command::Status, Output::Table)
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    let (error, ()) = tokio::join!(
        async {
            client
                .run(&Command::Reload, Output::Table)
                .await
                .unwrap_err()
        },
        async {
            drop(listener.accept().await.unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(b"Content-Length: 2\r\n\r\n{}")
                .await
                .unwrap();
        }
    );
    assert!(matches!(error, CommandError::Garbled { .. }), "{error}");
    drop(listener);
    let error = client
        .run(&Command::Status, Output::Table)
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 69, "{error}");
}

#[test]
fn listeners_on_all_addresses_are_asked_on_loopback() {
    for (listener, asked) in [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("10.0.0.1:1", "10.0.0.1:1"),
    ] {
        assert_eq!(
            AdminClient::for_listener(listener.parse().unwrap(), None).address,
            asked
        );
    }
}
