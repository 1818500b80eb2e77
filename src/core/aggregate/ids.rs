//! Questions that list sessions: split by owner, answers joined as if one server had given them.
//! Who owns a session is asked of the caller, never guessed here.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Answer, Failure, Heard, Merged, comma_separated, missing, object, unavailable};
use crate::core::{id::BackendName, reply::quoted, route::IdsArray};

/// One part of a split question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Whom to ask; any usable backend if none.
    pub backend: Option<BackendName>,
    /// JSON text of the params.
    pub params: String,
    /// What is answered without asking anybody: its sessions are not for the client to see.
    pub unseen: Option<String>,
}

/// A question split by owner, and what is needed to put the answers together again.
#[derive(Clone, Debug)]
pub struct Split {
    kind: IdsArray,
    /// Ask each; never empty.
    parts: Vec<Part>,
    /// In the order of the request.
    items: Vec<Item>,
}

#[derive(Clone, Debug)]
struct Item {
    session: String,
    /// The element of the request, as the client wrote it.
    element: Box<RawValue>,
    /// Index into `parts`.
    part: usize,
}

/// Splits a question by the owners of the sessions it lists. Params that a CLI would refuse, and
/// those that name no session, stay one part, to be judged by a backend. No backend hears of
/// sessions that are not `visible`: their part is answered as a CLI answers for unknown ones.
pub fn split(
    kind: IdsArray,
    params: Option<&RawValue>,
    owner_of: &dyn Fn(&str) -> Option<BackendName>,
    visible: &dyn Fn(&str) -> bool,
) -> Split {
    let whole = || Split {
        kind,
        parts: vec![Part {
            backend: None,
            params: params.map_or_else(|| "{}".to_owned(), |params| params.get().to_owned()),
            unseen: None,
        }],
        items: Vec::new(),
    };
    let Some((members, elements)) = params.and_then(|params| read(kind, params)) else {
        return whole();
    };
    let mut parts: Vec<(Owner, Vec<&RawValue>)> = Vec::new();
    let mut part_of: HashMap<Owner, usize> = HashMap::new();
    let mut items = Vec::with_capacity(elements.len());
    for (session, element) in elements {
        let owner = if visible(&session) {
            Owner::Of(owner_of(&session))
        } else {
            Owner::Unseen
        };
        let part = *part_of.entry(owner.clone()).or_insert_with(|| {
            parts.push((owner, Vec::new()));
            parts.len() - 1
        });
        parts[part].1.push(element);
        items.push(Item {
            session,
            element: element.to_owned(),
            part,
        });
    }
    match parts.len() {
        0 => return whole(),
        1 if parts[0].0 != Owner::Unseen => {
            let mut whole = whole();
            whole.parts[0].backend = parts.swap_remove(0).0.backend();
            return Split { items, ..whole };
        }
        _ => {}
    }
    let parts = parts
        .into_iter()
        .map(|(owner, elements)| Part {
            params: with_array(kind, &members, &elements),
            unseen: (owner == Owner::Unseen).then(|| unseen(kind, &elements)),
            backend: owner.backend(),
        })
        .collect();
    Split { kind, parts, items }
}

/// Who answers for some of the sessions.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Owner {
    /// This backend; any if none.
    Of(Option<BackendName>),
    /// Nobody: the client may not see them.
    Unseen,
}

impl Owner {
    fn backend(self) -> Option<BackendName> {
        match self {
            Self::Of(backend) => backend,
            Self::Unseen => None,
        }
    }
}

/// What CLI 1.0.102 answers to a question that lists only sessions that it does not know.
fn unseen(kind: IdsArray, elements: &[&RawValue]) -> String {
    let each = |text: fn(&str) -> String| comma_separated(elements.iter().map(|e| text(e.get())));
    match kind {
        IdsArray::GetClientMetadata => {
            let entries = each(|id| format!("{{\"sessionId\":{id},\"status\":\"notFound\"}}"));
            format!("[{entries}]")
        }
        IdsArray::EnrichMetadata => format!("{{\"sessions\":[{}]}}", each(bare_record)),
        IdsArray::BulkDelete => format!("{{\"freedBytes\":{{{}}}}}", each(|id| format!("{id}:0"))),
        IdsArray::CheckInUse => r#"{"inUse":[]}"#.to_owned(),
    }
}

/// A record that could not be enriched, but for the one member that always is.
fn bare_record(record: &str) -> String {
    let members: Members<'_> = serde_json::from_str(record).unwrap_or_default();
    match record.trim_end().strip_suffix('}') {
        Some(open) if !members.contains_key("isDetached") => {
            format!("{open},\"isDetached\":false}}")
        }
        _ => record.to_owned(),
    }
}

type Members<'a> = BTreeMap<String, &'a RawValue>;

/// The params' members and the sessions listed in them; none if a CLI would refuse them.
fn read(kind: IdsArray, params: &RawValue) -> Option<(Members<'_>, Vec<(String, &RawValue)>)> {
    let members: Members<'_> = serde_json::from_str(params.get()).ok()?;
    let array: Vec<&RawValue> = serde_json::from_str(members.get(array_name(kind))?.get()).ok()?;
    let elements = array
        .into_iter()
        .map(|element| {
            let session = match kind {
                // Of duplicate members the last counts, as in the CLI.
                IdsArray::EnrichMetadata => {
                    let record: Members<'_> = serde_json::from_str(element.get()).ok()?;
                    serde_json::from_str(record.get("sessionId")?.get()).ok()?
                }
                IdsArray::GetClientMetadata | IdsArray::BulkDelete | IdsArray::CheckInUse => {
                    serde_json::from_str(element.get()).ok()?
                }
            };
            Some((session, element))
        })
        .collect::<Option<_>>()?;
    Some((members, elements))
}

fn array_name(kind: IdsArray) -> &'static str {
    match kind {
        IdsArray::EnrichMetadata => "sessions",
        IdsArray::GetClientMetadata | IdsArray::BulkDelete | IdsArray::CheckInUse => "sessionIds",
    }
}

/// The params with another array.
fn with_array(kind: IdsArray, members: &Members<'_>, elements: &[&RawValue]) -> String {
    let array = format!("[{}]", comma_separated(elements.iter().map(|e| e.get())));
    let members = members.iter().map(|(name, value)| {
        let value = if name == array_name(kind) {
            &array
        } else {
            value.get()
        };
        format!("{}:{value}", quoted(name))
    });
    format!("{{{}}}", comma_separated(members))
}

impl Split {
    /// How many sessions the question lists.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it lists none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whom to ask what; never empty.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Joins the answers, one for each of [`parts`](Self::parts) in their order.
    ///
    /// A part that was refused refuses the whole, as one server would. An answer of another shape
    /// than a CLI gives counts as silence.
    pub fn join(&self, answers: &[Answer<'_>]) -> Merged {
        debug_assert_eq!(answers.len(), self.parts.len(), "one answer for each part");
        for answer in answers {
            if let Err(Failure::Refused(error)) = answer.outcome {
                return Merged::BackendError(error.get().to_owned());
            }
        }
        if let [only] = answers {
            return match only.outcome {
                Ok(result) => Merged::Result(result.get().to_owned()),
                Err(_) => unavailable(Some(only.backend)),
            };
        }
        let joined = match self.kind {
            IdsArray::GetClientMetadata => self.join_client_metadata(answers),
            IdsArray::EnrichMetadata => self.join_enriched(answers),
            IdsArray::BulkDelete => join_deleted(answers),
            IdsArray::CheckInUse => self.join_in_use(answers),
        };
        joined.unwrap_or_else(|failure| failure)
    }

    fn join_client_metadata(&self, answers: &[Answer<'_>]) -> Result<Merged, Merged> {
        let read = |r| serde_json::from_str::<Vec<&RawValue>>(RawValue::get(r)).ok();
        let mut queues = self.queues(answers, read)?;
        let entries = self.items.iter().filter_map(|item| {
            let silent = || {
                format!(
                    "{{\"sessionId\":{},\"status\":\"unavailable\",\
                     \"code\":\"BACKEND_UNAVAILABLE\",\
                     \"message\":\"The backend of this session did not answer; try again\"}}",
                    quoted(&item.session)
                )
            };
            queues.next(item, silent)
        });
        Ok(Merged::Result(format!("[{}]", comma_separated(entries))))
    }

    fn join_enriched(&self, answers: &[Answer<'_>]) -> Result<Merged, Merged> {
        #[derive(Deserialize)]
        struct Enriched<'a> {
            #[serde(borrow)]
            sessions: Vec<&'a RawValue>,
        }
        let mut queues = self.queues(answers, |r| object::<Enriched<'_>>(r).map(|e| e.sessions))?;
        // A record that nobody could enrich stays as it came.
        let entries = self
            .items
            .iter()
            .filter_map(|item| queues.next(item, || item.element.get().to_owned()));
        let body = comma_separated(entries);
        Ok(Merged::Result(format!(
            "{{\"sessions\":[{body}]{}}}",
            missing(&queues.missing)
        )))
    }

    fn join_in_use(&self, answers: &[Answer<'_>]) -> Result<Merged, Merged> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct InUse {
            in_use: HashSet<String>,
        }
        let answers = Heard::of(answers, object::<InUse>)?.complete()?;
        let in_use = self
            .items
            .iter()
            .filter(|item| answers[item.part].in_use.contains(&item.session))
            .map(|item| quoted(&item.session));
        Ok(Merged::Result(format!(
            "{{\"inUse\":[{}]}}",
            comma_separated(in_use)
        )))
    }

    /// Sorts the entries of each part by session.
    fn queues<'a>(
        &self,
        answers: &[Answer<'a>],
        read: impl Fn(&'a RawValue) -> Option<Vec<&'a RawValue>>,
    ) -> Result<Queues<'a>, Merged> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            session_id: String,
        }
        let read = |result: &'a RawValue| {
            let mut queues: HashMap<String, VecDeque<&RawValue>> = HashMap::new();
            for entry in read(result)? {
                let head: Head = object(entry)?;
                queues.entry(head.session_id).or_default().push_back(entry);
            }
            Some(queues)
        };
        let mut missing = Vec::new();
        let mut parts = Vec::with_capacity(answers.len());
        for answer in answers {
            let part = answer.outcome.ok().and_then(read);
            if part.is_none() {
                missing.push(answer.backend);
            }
            parts.push(part);
        }
        if parts.iter().all(Option::is_none) {
            return Err(unavailable(None));
        }
        Ok(Queues { parts, missing })
    }
}

fn join_deleted(answers: &[Answer<'_>]) -> Result<Merged, Merged> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Deleted<'a> {
        #[serde(borrow)]
        freed_bytes: BTreeMap<String, &'a RawValue>,
    }
    let answers = Heard::of(answers, object::<Deleted<'_>>)?.complete()?;
    let freed = answers
        .iter()
        .flat_map(|answer| &answer.freed_bytes)
        .map(|(session, bytes)| format!("{}:{bytes}", quoted(session)));
    Ok(Merged::Result(format!(
        "{{\"freedBytes\":{{{}}}}}",
        comma_separated(freed)
    )))
}

/// The entries of each part by session, in the order they came; none for a silent part.
struct Queues<'a> {
    parts: Vec<Option<HashMap<String, VecDeque<&'a RawValue>>>>,
    missing: Vec<&'a BackendName>,
}

impl Queues<'_> {
    /// The next entry for this item. None if its backend left it out, which it may.
    fn next(&mut self, item: &Item, silent: impl FnOnce() -> String) -> Option<String> {
        match &mut self.parts[item.part] {
            Some(queues) => Some(queues.get_mut(&item.session)?.pop_front()?.get().to_owned()),
            None => Some(silent()),
        }
    }
}

#[cfg(test)]
mod tests;
