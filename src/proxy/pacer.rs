//! How many sessions one backend opens again at a time: what a dead backend had would otherwise
//! fall upon the living all at once (DESIGN §5).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ahash::RandomState;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::core::id::BackendName;

/// Sessions that one backend opens again at a time.
const AT_A_TIME: usize = 8;

/// Backends remembered; those that nobody waits for are forgotten beyond it.
const BACKENDS: usize = 256;

/// Held while a session is being opened again.
pub(super) type Permit = OwnedSemaphorePermit;

/// Clones share their counts.
#[derive(Clone, Debug, Default)]
pub struct Pacer {
    doors: Arc<Mutex<HashMap<BackendName, Arc<Semaphore>, RandomState>>>,
}

impl Pacer {
    /// Returns when `backend` may open one more, first come first served.
    pub(super) async fn admit(&self, backend: &BackendName) -> Option<Permit> {
        let door = {
            let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
            if doors.len() >= BACKENDS {
                doors.retain(|_, door| door.available_permits() < AT_A_TIME);
            }
            let door = doors
                .entry(backend.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(AT_A_TIME)));
            door.clone()
        };
        // Never closed.
        door.acquire_owned().await.ok()
    }
}
