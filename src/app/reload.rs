//! Reads the configuration again and applies it: all of it, or nothing.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{App, Start, backstage::ReloadWish, rules, start::Servers, succession::Door};
use crate::{
    config,
    control::{
        admin::AdminServer,
        reload::{FileWatch, Pace},
    },
    core::event::Event,
    proxy::{hub::Message, listener},
};

/// What a reload says that found everything as it was.
const NOTHING: &str = "nothing changed";

/// Who is told how a reload went.
type Outcome = Result<String, Value>;

/// Waits for reasons to reload.
pub(super) struct Reloader {
    file: Option<PathBuf>,
    wished: mpsc::Receiver<ReloadWish>,
    watch: Option<FileWatch>,
    /// The last reload was refused.
    failed: bool,
}

impl Reloader {
    pub(super) fn new(start: &Start, wished: mpsc::Receiver<ReloadWish>) -> Self {
        let watch = start.config.source.as_ref().and_then(|_| {
            FileWatch::start(start.files.clone(), Pace::default())
                .inspect_err(|error| {
                    tracing::warn!(
                        target: "taxiway",
                        %error,
                        "cannot watch the configuration: reload by SIGHUP or `taxiway reload`"
                    );
                })
                .ok()
        });
        Self {
            file: start.config.source.clone(),
            wished,
            watch,
            failed: false,
        }
    }

    /// The next wish: by the admin API, or because a file has changed.
    pub(super) async fn next(&mut self) -> ReloadWish {
        let changed = async {
            match &mut self.watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(wish) = self.wished.recv() => wish,
            () = changed => ReloadWish { trigger: "file", answer: None },
        }
    }

    /// Reads, checks, compares, applies. Whatever is wrong, the old configuration stays in force.
    pub(super) async fn reload(
        &mut self,
        app: &mut App,
        servers: &Servers,
        trigger: &'static str,
        answer: Option<oneshot::Sender<Outcome>>,
    ) {
        let Some(file) = self.file.clone() else {
            // No reload that failed: there is nothing that could be out of date.
            let message = "this Taxiway was started without a file; nothing to read again";
            tracing::warn!(target: "taxiway", trigger, "{message}");
            if let Some(answer) = answer {
                let _gone = answer.send(Err(json!({ "message": message })));
            }
            return;
        };
        let outcome = self.try_reload(app, servers, file).await;
        let (ok, summary) = match &outcome {
            Ok(summary) => (true, summary.clone()),
            Err(refusal) => (false, summary_of(refusal)),
        };
        // Whoever writes the file and asks for a reload is told once: the watch comes second.
        let is_echo = trigger == "file" && ok && summary == NOTHING && !self.failed;
        self.failed = !ok;
        if !is_echo {
            app.shared.observer.record(&Event::Reload {
                ok,
                trigger,
                summary: summary.into(),
            });
        }
        if let Some(answer) = answer {
            // Nobody may be waiting any more.
            let _gone = answer.send(outcome);
        }
    }

    async fn try_reload(&mut self, app: &mut App, servers: &Servers, file: PathBuf) -> Outcome {
        let read = tokio::task::spawn_blocking(move || config::load(&file)).await;
        let loaded = match read {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(failure)) => {
                self.follow(failure.files.clone());
                return Err(json!({
                    "message": "the configuration has errors; nothing was applied",
                    "errors": failure.to_json(),
                }));
            }
            Err(_) => return Err(json!({ "message": "reading the configuration was cut short" })),
        };
        self.follow(loaded.files.clone());
        let old = app.config.load_full();
        let changes = config::diff(&old, &loaded.config);
        if !changes.refused.is_empty() {
            return Err(json!({
                "message": "needs a restart; nothing was applied",
                "refused": changes.refusals(),
            }));
        }
        let new = loaded.config;
        // What can fail comes first, so that a failure leaves everything as it was.
        let moved = new.listener.address != old.listener.address;
        let listener = if moved {
            let address = new.listener.address;
            Some(
                listener::bind(address)
                    .and_then(|listener| Door::new(listener.into_std()?))
                    .map_err(|e| cannot_bind("listener.address", address, &e))?,
            )
        } else {
            None
        };
        let bound = if new.admin.address != old.admin.address {
            Some(AdminServer::bind(new.admin.address))
        } else if new.admin.token != old.admin.token {
            // The same socket, for a server with another token.
            app.admin.as_ref().map(|admin| admin.bound.try_clone())
        } else {
            None
        };
        let token = new.admin.token.clone();
        let admin = bound
            .map(|bound| app.administer(bound?, token))
            .transpose()
            .map_err(|e| cannot_bind("admin.address", new.admin.address, &e))?;
        app.config.store(std::sync::Arc::new(new.clone()));
        app.rules.store(std::sync::Arc::new(rules(&new)));
        // Idle connections have to look as well: their clients may be nobody any more.
        app.shared.hub.publish(&Message::Rules);
        let remembered = new.limits.directory_sessions;
        app.shared.store.lock().set_limit(remembered);
        app.log.set_level(new.log.level);
        servers.withhold(&new);
        app.apply_backends(servers);
        app.show_limits();
        if let Some(door) = listener {
            app.accept(door);
        }
        if let Some(admin) = admin {
            app.is_administered_by(admin);
        }
        let lines = changes.lines();
        Ok(if lines.is_empty() {
            NOTHING.to_owned()
        } else {
            lines.join("; ")
        })
    }

    fn follow(&mut self, files: Vec<PathBuf>) {
        if let Some(watch) = &mut self.watch {
            watch.set_files(files);
        }
    }
}

fn cannot_bind(key: &str, address: std::net::SocketAddr, error: &std::io::Error) -> Value {
    json!({ "message": format!("{key}: cannot listen on {address}: {error}; nothing was applied") })
}

fn summary_of(refusal: &Value) -> String {
    let message = refusal
        .get("message")
        .and_then(Value::as_str)
        .map(str::to_owned);
    let list = |key: &str, field: &dyn Fn(&Value) -> Option<String>| {
        let items = refusal.get(key)?.as_array()?;
        Some(
            items
                .iter()
                .filter_map(field)
                .collect::<Vec<_>>()
                .join("; "),
        )
    };
    let refused = list("refused", &|v| v.as_str().map(str::to_owned));
    let errors = list("errors", &|v| {
        let text = v.get("message")?.as_str()?;
        let place = v.get("line").and_then(Value::as_u64).unwrap_or(0);
        Some(format!("line {place}: {text}"))
    });
    [message, refused, errors]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(": ")
}
