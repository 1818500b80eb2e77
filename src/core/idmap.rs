//! Who awaits what on one client connection: calls of the client by its own ids, and requests of
//! backends by ids that Taxiway gives.
//!
//! Client ids pass unchanged, so the client's table is keyed by them. Backends number their
//! requests 1, 2, 3 … per connection (PROTOCOL §2), so two of them always collide: these get
//! positive integers of ours, which is the only form that every SDK can read.

use std::hash::Hash;

use super::{rare::Rare, scan::Id};

/// Longest string id kept without a heap allocation: a UUID and a little more.
const INLINE: usize = 38;

/// A request id by value: `"a"` and `"\u0061"` are equal, `1` and `"1"` are not.
#[derive(Clone, Debug)]
pub enum RequestId {
    /// A JSON integer.
    Int(i64),
    /// A short string: its length and bytes.
    Short(u8, [u8; INLINE]),
    /// A long one.
    Long(Box<str>),
}

impl RequestId {
    /// The value of `id` as it stands in `body`.
    pub fn read(id: &Id, body: &[u8]) -> Self {
        match id {
            Id::Int(value, _) => Self::Int(*value),
            Id::Str(text) => Self::from_text(&text.get(body)),
        }
    }

    /// A string id.
    pub fn from_text(text: &str) -> Self {
        let mut bytes = [0; INLINE];
        match bytes.get_mut(..text.len()) {
            Some(head) => {
                head.copy_from_slice(text.as_bytes());
                Self::Short(u8::try_from(text.len()).expect("at most INLINE"), bytes)
            }
            None => Self::Long(text.into()),
        }
    }

    /// Bytes on the heap: none for an id of usual length.
    pub fn heap_bytes(&self) -> usize {
        if let Self::Long(text) = self {
            text.len()
        } else {
            0
        }
    }

    fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Int(_) => None,
            Self::Short(len, bytes) => bytes.get(..usize::from(*len)),
            Self::Long(text) => Some(text.as_bytes()),
        }
    }

    /// Appends the id as a JSON token.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Int(value) => {
                out.extend_from_slice(value.to_string().as_bytes());
            }
            Self::Short(..) | Self::Long(_) => {
                let text = String::from_utf8_lossy(self.text().unwrap_or_default());
                out.extend_from_slice(
                    serde_json::to_string(&*text)
                        .unwrap_or_else(|_| "\"\"".into())
                        .as_bytes(),
                );
            }
        }
    }

    /// The id as a JSON token.
    pub fn token(&self) -> String {
        let mut out = Vec::new();
        self.write(&mut out);
        String::from_utf8(out).unwrap_or_default()
    }
}

impl PartialEq for RequestId {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Int(_), _) | (_, Self::Int(_)) => false,
            _ => self.text() == other.text(),
        }
    }
}

impl Eq for RequestId {}

impl Hash for RequestId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        match self {
            Self::Int(value) => value.hash(state),
            Self::Short(..) | Self::Long(_) => self.text().hash(state),
        }
    }
}

/// Up to so many calls are looked for one by one, which takes less than to hash an id; and memory
/// grows with the calls that there are.
const FEW: usize = 16;

/// Calls of the client that await a response, with what the multiplexer keeps of each: behind a
/// pointer, since that is much, and moves in and out with each call.
#[derive(Debug)]
pub struct Calls<T> {
    /// All of them, while there are few.
    few: Vec<(RequestId, Box<T>)>,
    /// All of them, once there were more, until there is none.
    many: Rare<RequestId, Box<T>>,
    /// Sum of what the ids keep on the heap.
    id_bytes: usize,
}

impl<T> Default for Calls<T> {
    fn default() -> Self {
        Self {
            few: Vec::new(),
            many: Rare::default(),
            id_bytes: 0,
        }
    }
}

/// Memory for a few [`Calls`], without any in it.
#[derive(Debug)]
pub struct CallsMemory<T>(Vec<(RequestId, Box<T>)>);

impl<T> Calls<T> {
    /// Whether there is no call, and no memory for any.
    #[inline]
    pub fn owns_nothing(&self) -> bool {
        self.few.capacity() == 0 && self.many.is_empty()
    }

    /// Takes memory for calls to come; for one that owns nothing.
    #[inline]
    pub fn lend(&mut self, memory: CallsMemory<T>) {
        self.few = memory.0;
    }

    /// That memory, if there is any and no call is in it.
    #[inline]
    pub fn give_back(&mut self) -> Option<CallsMemory<T>> {
        let is_free = self.few.is_empty() && self.few.capacity() > 0;
        is_free.then(|| CallsMemory(std::mem::take(&mut self.few)))
    }

    /// Bytes of ids that are too long to be kept inline: a peer may make them as long as a frame.
    pub fn id_bytes(&self) -> usize {
        self.id_bytes
    }

    /// All calls, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&RequestId, &T)> {
        let few = self.few.iter().map(|(id, call)| (id, &**call));
        few.chain(self.many.iter().map(|(id, call)| (id, &**call)))
    }

    /// Whether a call with this id awaits its response.
    pub fn contains(&self, id: &RequestId) -> bool {
        self.get(id).is_some()
    }

    /// Enters a call; false, and nothing changed, if its id is taken.
    #[inline]
    pub fn insert(&mut self, id: RequestId, call: Box<T>) -> bool {
        if self.contains(&id) {
            return false;
        }
        self.id_bytes += id.heap_bytes();
        if self.many.is_empty() && self.few.len() < FEW {
            self.few.reserve_exact(1);
            self.few.push((id, call));
            return true;
        }
        self.many.extend(std::mem::take(&mut self.few));
        self.many.insert(id, call);
        true
    }

    /// The call of this id.
    #[inline]
    pub fn get(&self, id: &RequestId) -> Option<&T> {
        match self.place(id) {
            Some(at) => Some(&self.few[at].1),
            None if self.many.is_empty() => None,
            None => self.many.get(id).map(|call| &**call),
        }
    }

    /// The call of this id.
    #[inline]
    pub fn get_mut(&mut self, id: &RequestId) -> Option<&mut T> {
        match self.place(id) {
            Some(at) => Some(&mut self.few[at].1),
            None if self.many.is_empty() => None,
            None => self.many.get_mut(id).map(|call| &mut **call),
        }
    }

    /// Where it stands among few.
    #[inline]
    fn place(&self, id: &RequestId) -> Option<usize> {
        self.few.iter().position(|(other, _)| other == id)
    }

    /// Takes the call out: it is answered.
    #[inline]
    pub fn remove(&mut self, id: &RequestId) -> Option<Box<T>> {
        let call = match self.place(id) {
            Some(at) => Some(self.few.swap_remove(at).1),
            None if self.many.is_empty() => None,
            None => self.many.remove(id),
        };
        if call.is_some() {
            self.id_bytes -= id.heap_bytes();
        }
        call
    }

    /// Takes out all calls that `gone` is true for, in no order.
    pub fn drain_where(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<(RequestId, Box<T>)> {
        let ids: Vec<RequestId> = self
            .iter()
            .filter(|(_, call)| gone(call))
            .map(|(id, _)| id.clone())
            .collect();
        ids.into_iter()
            .filter_map(|id| self.remove(&id).map(|call| (id, call)))
            .collect()
    }

    /// How many of those that `of` is true for await a response.
    pub fn count(&self, of: impl Fn(&T) -> bool) -> usize {
        self.iter().filter(|(_, call)| of(call)).count()
    }

    /// How many await a response.
    pub fn len(&self) -> usize {
        self.few.len() + self.many.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Requests of backends to the client: our id ⇄ (upstream, the backend's own id token), with what
/// the multiplexer keeps of each.
#[derive(Debug)]
pub struct BackendRequests<U, T> {
    next: u64,
    table: Rare<u64, (U, Box<[u8]>, T)>,
}

impl<U, T> Default for BackendRequests<U, T> {
    fn default() -> Self {
        Self {
            next: 1,
            table: Rare::default(),
        }
    }
}

impl<U: Copy + PartialEq, T> BackendRequests<U, T> {
    /// A new id for the request that `upstream` sent with the id `token` (JSON, with quotes if a
    /// string). Never given twice on one connection.
    pub fn assign(&mut self, upstream: U, token: &[u8], kept: T) -> u64 {
        let id = self.next;
        self.next += 1;
        self.table.insert(id, (upstream, token.into(), kept));
        id
    }

    /// The client has answered `id`: where the answer goes, the id to restore, and what was kept.
    pub fn take(&mut self, id: &RequestId) -> Option<(U, Box<[u8]>, T)> {
        let RequestId::Int(id) = id else { return None };
        self.table.remove(&u64::try_from(*id).ok()?)
    }

    /// Our id of a request, by the backend's own.
    pub fn find(&self, upstream: U, token: &[u8]) -> Option<u64> {
        self.table
            .iter()
            .find(|(_, (u, t, _))| *u == upstream && **t == *token)
            .map(|(id, _)| *id)
    }

    /// Forgets what `upstream` still awaits: late answers are dropped.
    pub fn forget(&mut self, upstream: U) {
        self.retain(|u, _| u != upstream);
    }

    /// Forgets all but those that `stays` is true for.
    pub fn retain(&mut self, mut stays: impl FnMut(U, &T) -> bool) {
        self.table.retain(|_, (u, _, kept)| stays(*u, kept));
    }

    /// All requests by our ids, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, U, &T)> {
        self.table.iter().map(|(id, (u, _, kept))| (*id, *u, kept))
    }

    /// How many await the client's answer.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_compared_by_value_and_type() {
        let long = "x".repeat(100);
        assert_eq!(RequestId::from_text("a"), RequestId::from_text("a"));
        assert_ne!(RequestId::from_text("1"), RequestId::Int(1));
        assert_eq!(RequestId::from_text(&long), RequestId::from_text(&long));
        assert_eq!(RequestId::from_text("a\"b").token(), r#""a\"b""#);
        assert_eq!(RequestId::Int(-7).token(), "-7");
    }

    proptest! {
        /// Few and many behave as one table.
        #[test]
        fn calls_are_a_table(steps in proptest::collection::vec((0i64..40, any::<bool>()), 1..300)) {
            let (mut calls, mut table) = (Calls::default(), HashMap::new());
            for (at, (id, enters)) in steps.into_iter().enumerate() {
                let key = RequestId::Int(id);
                if enters {
                    prop_assert_eq!(calls.insert(key.clone(), Box::new(at)), !table.contains_key(&id));
                    table.entry(id).or_insert(at);
                } else {
                    prop_assert_eq!(calls.remove(&key).map(|at| *at), table.remove(&id));
                }
                prop_assert_eq!(calls.get(&key), table.get(&id));
                prop_assert_eq!(calls.get_mut(&key).map(|at| *at), table.get(&id).copied());
                prop_assert_eq!(calls.len(), table.len());
                prop_assert_eq!(calls.iter().count(), table.len());
                prop_assert!(calls.few.is_empty() || calls.many.is_empty());
            }
            let even = calls.drain_where(|at| at % 2 == 0).len();
            prop_assert_eq!(even, table.values().filter(|at| *at % 2 == 0).count());
            prop_assert_eq!(calls.count(|_| true), table.len() - even);
        }

        #[test]
        fn the_map_of_backend_requests_is_a_bijection(
            requests in proptest::collection::vec((0u8..4, "[0-9]{1,3}|\"[a-z]{1,5}\""), 1..100),
            order in any::<u64>(),
        ) {
            let mut map = BackendRequests::default();
            let mut given = Vec::new();
            for (upstream, token) in &requests {
                let id = map.assign(*upstream, token.as_bytes(), ());
                prop_assert!(!given.iter().any(|(other, _, _)| *other == id));
                given.push((id, *upstream, token.clone()));
            }
            let by = usize::try_from(order % given.len() as u64).unwrap();
            given.rotate_left(by);
            for (id, upstream, token) in given {
                let id = i64::try_from(id).unwrap();
                let (u, t, ()) = map.take(&RequestId::Int(id)).unwrap();
                prop_assert_eq!((u, &*t), (upstream, token.as_bytes()));
                prop_assert!(map.take(&RequestId::Int(id)).is_none());
            }
            prop_assert!(map.is_empty());
        }
    }
}
