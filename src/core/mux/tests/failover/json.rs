//! What the fakes read out of frames: only the members that somebody looks at.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A text without a copy, if it holds no escapes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    fn owned(self) -> String {
        self.0.into_owned()
    }
}

#[derive(Deserialize)]
struct CallFrame<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Text<'a>,
    #[serde(borrow, default)]
    params: CallParams<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CallParams<'a> {
    #[serde(borrow)]
    session_id: Text<'a>,
    #[serde(borrow)]
    prompt: Text<'a>,
    wait: bool,
    #[serde(borrow)]
    request_id: Text<'a>,
    #[serde(borrow)]
    mode: Text<'a>,
    #[serde(borrow)]
    value: Text<'a>,
    #[serde(borrow)]
    tools: Vec<Tool<'a>>,
    continue_pending_work: bool,
}

#[derive(Deserialize)]
struct Tool<'a> {
    #[serde(borrow)]
    name: Text<'a>,
}

/// A frame of a machine to a backend; what is not there is empty.
#[derive(Debug)]
pub(super) struct Call {
    /// As it stands in the frame.
    pub(super) id: String,
    pub(super) method: String,
    pub(super) session: String,
    pub(super) prompt: String,
    pub(super) wait: bool,
    pub(super) request: String,
    pub(super) mode: String,
    pub(super) value: String,
    /// The name of the first tool.
    pub(super) tool: String,
    /// What was pending goes on.
    pub(super) goes_on: bool,
}

impl Call {
    pub(super) fn read(body: &str) -> Self {
        let frame: CallFrame<'_> = serde_json::from_str(body).expect("a frame");
        let params = frame.params;
        let tool = params.tools.into_iter().next();
        Self {
            id: frame.id.map_or("null", RawValue::get).to_owned(),
            method: frame.method.owned(),
            session: params.session_id.owned(),
            prompt: params.prompt.owned(),
            wait: params.wait,
            request: params.request_id.owned(),
            mode: params.mode.owned(),
            value: params.value.owned(),
            tool: tool.map(|tool| tool.name.owned()).unwrap_or_default(),
            goes_on: params.continue_pending_work,
        }
    }
}

/// A frame to a client.
#[derive(Debug, Deserialize)]
pub(super) struct Heard<'a> {
    #[serde(borrow)]
    pub(super) id: Option<&'a RawValue>,
    pub(super) method: Option<&'a str>,
    #[serde(borrow, default)]
    pub(super) params: HeardParams<'a>,
    #[serde(borrow)]
    pub(super) result: Option<Outcome<'a>>,
    #[serde(borrow)]
    pub(super) error: Option<Failure<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct HeardParams<'a> {
    pub(super) session_id: &'a str,
    #[serde(borrow)]
    pub(super) event: Event<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'a str,
    #[serde(borrow)]
    pub(super) data: EventFields<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct EventFields<'a> {
    /// The connection that a backend wrote it to; none in Taxiway's own.
    pub(super) link: Option<u64>,
    pub(super) epoch: u64,
    pub(super) n: u64,
    pub(super) message_id: &'a str,
    pub(super) request_id: &'a str,
    pub(super) aborted: bool,
    pub(super) turn: Option<&'a str>,
    #[serde(borrow)]
    pub(super) message: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Outcome<'a> {
    pub(super) approve: Option<&'a str>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Failure<'a> {
    pub(super) code: i64,
    #[serde(borrow)]
    pub(super) message: Cow<'a, str>,
}

pub(super) fn heard(body: &str) -> Heard<'_> {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}
