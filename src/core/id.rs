//! Newtypes for every identity in the product.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::ring::placement_hash;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Eq, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl PartialEq for $name {
            /// Mostly one of them was cloned from the other.
            #[inline]
            fn eq(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
            }
        }

        impl Hash for $name {
            /// As the text has it, by which tables are asked, too.
            #[inline]
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(Arc::from(text))
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(Arc::from(text))
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

/// The configured name of a backend: its identity for homes and hashing, whatever its address.
///
/// Carries its placement hash, so that ranking a hundred backends does not hash a hundred names. The
/// text is behind a thin pointer: a million sessions each have a home.
#[derive(Clone)]
pub struct BackendName {
    text: Arc<Text>,
    /// A function of `text` alone, hence no part of equality, order or hash.
    placement_hash: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Text(Box<str>);

impl BackendName {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.text.0
    }

    /// Its [`placement_hash`].
    #[inline]
    pub fn placement_hash(&self) -> u64 {
        self.placement_hash
    }
}

impl From<&str> for BackendName {
    fn from(text: &str) -> Self {
        Self {
            placement_hash: placement_hash(text),
            text: Arc::new(Text(Box::from(text))),
        }
    }
}

impl From<Arc<str>> for BackendName {
    fn from(text: Arc<str>) -> Self {
        Self::from(&*text)
    }
}

impl From<String> for BackendName {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl PartialEq for BackendName {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || self.text == other.text
    }
}

impl Eq for BackendName {}

impl PartialOrd for BackendName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BackendName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

// As the text's own hash: maps keyed by names are looked up by `&str`.
impl Hash for BackendName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Borrow<str> for BackendName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

text_id! {
    /// A session's id, as the client wrote it in `params.sessionId` (case-sensitive).
    SessionId
}

/// One client connection, unique within this process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// A secret that never shows itself in `Debug` output, logs or the admin API. Its memory is wiped
/// with the last copy.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Wraps the clear text.
    pub fn new(text: &str) -> Self {
        Self::from(text.to_owned())
    }

    /// The clear text: only for the wire, or to compare.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Takes the text over instead of leaving a copy behind.
impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
