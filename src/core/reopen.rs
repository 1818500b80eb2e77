//! The calls by which Taxiway opens a session again on a client's behalf: the client's own
//! parameters, changed as PROTOCOL §10 says. Text in, text out; when to call is `mux`'s business.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::reply;

/// Which call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// `session.resume` with all parameters: the history comes back, no `session.resume` event is
    /// told.
    Resume {
        /// The parameters' own model is given again.
        keep_model: bool,
        /// Pending tools and permissions come back, and their turn with them; else only if the
        /// parameters say so themselves.
        goes_on: bool,
    },
    /// `session.resume` without what only one connection may declare: tools, commands, canvases
    /// and hooks.
    Bare,
    /// `session.create` with all parameters: for a session that left nothing on disk.
    Create,
}

impl Form {
    /// The method of this call.
    pub fn method(self) -> &'static str {
        match self {
            Self::Resume { .. } | Self::Bare => "session.resume",
            Self::Create => "session.create",
        }
    }
}

/// The parameters of the call that opens `session` again, given the whole body of the
/// `session.create` or `session.resume` by which the client opened it last. Values stay as the
/// client wrote them, byte for byte; of a key given twice the last one counts, as in the CLI.
///
/// None if the body has no parameters to go by, which cannot be after the backend has accepted it.
pub fn params(body: &[u8], session: &str, form: Form) -> Option<String> {
    #[derive(Deserialize)]
    struct Opened<'a> {
        #[serde(borrow)]
        params: BTreeMap<String, &'a RawValue>,
    }
    let mut params = serde_json::from_slice::<Opened<'_>>(body).ok()?.params;
    // It would start a task in the cloud, not open what is there.
    params.remove("cloud");
    let session = reply::quoted(session);
    let session = RawValue::from_string(session).ok()?;
    params.insert("sessionId".to_owned(), &session);
    let yes = RawValue::from_string("true".to_owned()).ok()?;
    match form {
        Form::Resume {
            keep_model,
            goes_on,
        } => {
            if !keep_model {
                params.remove("model");
                params.remove("reasoningEffort");
            }
            if goes_on {
                params.insert("continuePendingWork".to_owned(), &yes);
            }
            params.insert("disableResume".to_owned(), &yes);
        }
        Form::Bare => {
            for key in [
                "canvases",
                "commands",
                "hooks",
                "model",
                "reasoningEffort",
                "tools",
            ] {
                params.remove(key);
            }
            params.insert("continuePendingWork".to_owned(), &yes);
            params.insert("disableResume".to_owned(), &yes);
        }
        Form::Create => {
            params.remove("continuePendingWork");
            params.remove("disableResume");
        }
    }
    serde_json::to_string(&params).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn made(body: &str, form: Form) -> Value {
        serde_json::from_str(&params(body.as_bytes(), "s", form).unwrap()).unwrap()
    }

    const BODY: &str = r#"{"jsonrpc":"2.0","id":1,"method":"session.create","params":{"model":"old",
        "mo\u0064el":"m","tools":[{"name":"t","x":1.50}],"hooks":true,"cloud":{},"provider":{"apiKey":"k"}}}"#;

    #[test]
    fn a_resume_keeps_what_the_client_declared() {
        let form = |keep_model, goes_on| Form::Resume {
            keep_model,
            goes_on,
        };
        let resume = made(BODY, form(true, true));
        assert_eq!(
            resume,
            json!({
                "sessionId": "s", "model": "m", "tools": [{"name": "t", "x": 1.5}], "hooks": true,
                "provider": {"apiKey": "k"}, "continuePendingWork": true, "disableResume": true,
            })
        );
        let quiet = made(BODY, form(true, false));
        assert_eq!(quiet.get("continuePendingWork"), None, "{quiet}");
        let own = r#"{"params":{"continuePendingWork":true}}"#;
        assert_eq!(
            made(own, form(true, false))["continuePendingWork"],
            json!(true),
            "the client wants it so"
        );
        let text = params(BODY.as_bytes(), "s", form(false, true)).unwrap();
        assert!(
            text.contains(r#"{"name":"t","x":1.50}"#),
            "as it stood: {text}"
        );
        assert!(!text.contains("model"), "{text}");
    }

    #[test]
    fn a_bare_one_declares_nothing_and_a_create_has_no_words_of_resume() {
        let bare = made(BODY, Form::Bare);
        for key in ["tools", "hooks", "commands", "canvases", "model", "cloud"] {
            assert_eq!(bare.get(key), None, "{key}");
        }
        let again =
            r#"{"params":{"sessionId":"other","disableResume":true,"continuePendingWork":true}}"#;
        assert_eq!(made(again, Form::Create), json!({"sessionId": "s"}));
    }

    #[test]
    fn without_parameters_there_is_nothing_to_go_by() {
        for body in ["{}", "[]", r#"{"params":[]}"#, "x"] {
            assert_eq!(params(body.as_bytes(), "s", Form::Create), None, "{body}");
        }
    }
}
