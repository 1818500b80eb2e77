//! Faults that a test can order.

/// One way to misbehave. A `method` of `None` means any method.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Misbehaviour {
    /// Instead of the next answer: bytes that are no frame.
    Garbage {
        /// Whose answer is spoilt.
        method: Option<String>,
    },
    /// Of the next answer only the first half; nothing more comes on that connection, which stays
    /// open.
    HalfFrame {
        /// Whose answer is cut.
        method: Option<String>,
    },
    /// The next answer carries an id that nobody asked with.
    WrongId {
        /// Whose answer is sent astray.
        method: Option<String>,
    },
    /// No answers at all, until [`super::SimServer::behave`].
    Silence {
        /// What is not answered.
        method: Option<String>,
    },
}

impl Misbehaviour {
    /// Whether it concerns an answer to `method`.
    pub(super) fn concerns(&self, method: &str) -> bool {
        let wanted = match self {
            Self::Garbage { method }
            | Self::HalfFrame { method }
            | Self::WrongId { method }
            | Self::Silence { method } => method,
        };
        wanted.as_deref().is_none_or(|wanted| wanted == method)
    }
}
