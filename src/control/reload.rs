//! Tells when the configuration file, or a file that it names, has changed. Reads none of them.
//!
//! What is watched are directories: editors replace files by renaming, and Kubernetes swaps a
//! symbolic link beside the file. Events only say when to look; what counts is whether a file's
//! identity, size or time is another one, and a slow look round finds what no event told (network
//! file systems, exhausted watches).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

/// Quiet times that a burst may take: a directory in which somebody writes all the time is looked at,
/// too.
const BURST: usize = 5;

/// How quickly changes are told.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Quiet time that ends a burst of changes.
    pub debounce: Duration,
    /// Between two looks without an event.
    pub look_round: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(200),
            look_round: Duration::from_secs(10),
        }
    }
}

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct FileWatch {
    files: watch::Sender<BTreeSet<PathBuf>>,
    changes: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl FileWatch {
    /// Starts to watch; files that do not exist yet are told when they appear. Must be called in
    /// a tokio runtime.
    pub fn start(files: impl IntoIterator<Item = PathBuf>, pace: Pace) -> io::Result<Self> {
        let files: BTreeSet<PathBuf> = files.into_iter().collect();
        let seen = look(&files);
        let bell = Arc::new(Bell::default());
        let told = bell.clone();
        // Its thread sleeps until the system tells something: nothing wakes up while nothing happens.
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Errors of the watch are a reason to look as well.
            if event.map_or(true, |event| told.concerns(&event)) {
                told.rung.notify_one();
            }
        })
        .map_err(io::Error::other)?;
        let (publish, changes) = watch::channel(0);
        let (send_files, follow) = watch::channel(files);
        let mut look_round = LookRound {
            files: follow,
            seen,
            watched: BTreeSet::new(),
            watcher,
            bell,
            publish,
            pace,
        };
        look_round.watch_directories();
        let task = tokio::spawn(look_round.run());
        Ok(Self {
            files: send_files,
            changes,
            task,
        })
    }

    /// Returns when something has changed since the last return, or since the start. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The task has died with the runtime.
            std::future::pending::<()>().await;
        }
    }

    /// Watches other files from now on: those that the new configuration names.
    pub fn set_files(&self, files: impl IntoIterator<Item = PathBuf>) {
        let files: BTreeSet<PathBuf> = files.into_iter().collect();
        self.files.send_if_modified(|old| {
            let modified = *old != files;
            *old = files;
            modified
        });
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A file as it was at one look.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Print {
    /// Where links lead to.
    target: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// A rename within the file system changes only this.
    changed: (i64, i64),
}

/// What the watch's thread shares with the task.
#[derive(Debug, Default)]
struct Bell {
    rung: Notify,
    /// What files and the links to them are called. A log or a database that is written beside them
    /// all the time is nobody's concern.
    names: Mutex<BTreeSet<OsString>>,
}

impl Bell {
    fn names(&self) -> MutexGuard<'_, BTreeSet<OsString>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn concerns(&self, event: &notify::Event) -> bool {
        if !may_change(event.kind) {
            return false;
        }
        let names = self.names();
        let mut changed = event.paths.iter().filter_map(|path| path.file_name());
        event.paths.is_empty() || changed.any(|name| names.contains(name))
    }
}

struct LookRound {
    files: watch::Receiver<BTreeSet<PathBuf>>,
    seen: BTreeMap<PathBuf, Option<Print>>,
    watched: BTreeSet<Directory>,
    watcher: RecommendedWatcher,
    bell: Arc<Bell>,
    publish: watch::Sender<u64>,
    pace: Pace,
}

impl LookRound {
    async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.bell.rung.notified() => self.burst().await,
                () = tokio::time::sleep(self.pace.look_round) => {}
                changed = self.files.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let files = self.files.borrow_and_update().clone();
                    // What is watched newly was read just now: no change by itself.
                    self.seen.retain(|file, _| files.contains(file));
                    for file in files {
                        let print = print(&file);
                        self.seen.entry(file).or_insert(print);
                    }
                }
            }
            let files = self.seen.keys().cloned().collect();
            let now = look(&files);
            // Links may lead elsewhere now.
            self.watch_directories();
            if now != self.seen {
                self.seen = now;
                self.publish.send_modify(|count| *count += 1);
            }
        }
    }

    /// Until it has been quiet for a while.
    async fn burst(&self) {
        for _ in 0..BURST {
            tokio::time::sleep(self.pace.debounce).await;
            if self.bell.rung.notified().now_or_never().is_none() {
                return;
            }
        }
    }

    fn watch_directories(&mut self) {
        let mut names = BTreeSet::new();
        let mut wanted = BTreeSet::new();
        for file in &*self.files.borrow() {
            wanted.extend(directories(file, &mut names));
        }
        let own = wanted
            .iter()
            .filter_map(|dir: &Directory| dir.path.file_name());
        names.extend(own.map(OsString::from));
        *self.bell.names() = names;
        for gone in self.watched.difference(&wanted) {
            // Gone from the disk as well, perhaps.
            let _unknown = self.watcher.unwatch(&gone.path);
        }
        // One that cannot be watched now is tried again at each look.
        self.watched = wanted
            .into_iter()
            .filter(|dir| {
                self.watched.contains(dir)
                    || self
                        .watcher
                        .watch(&dir.path, RecursiveMode::NonRecursive)
                        .is_ok()
            })
            .collect();
    }
}

/// Whether a file may be another one after it. Reading is none: Taxiway does that itself.
fn may_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

/// A directory to watch. The system watches the directory, not its name: made anew under the same
/// name, it is another one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Directory {
    /// Without links.
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Inodes are given again: a directory removed and made anew may well have the same one.
    born: Option<SystemTime>,
}

impl Directory {
    fn at(path: &Path) -> Option<Self> {
        let path = fs::canonicalize(path).ok()?;
        let meta = fs::metadata(&path).ok().filter(fs::Metadata::is_dir)?;
        Some(Self {
            path,
            device: meta.dev(),
            inode: meta.ino(),
            born: meta.created().ok(),
        })
    }
}

/// The directories in which a change can mean another content of `file`: its own, and those of
/// everything that links lead through. What changes there is added to `names`.
fn directories(file: &Path, names: &mut BTreeSet<OsString>) -> BTreeSet<Directory> {
    let mut found = BTreeSet::new();
    // Where it has come to, without links; and what is still to be walked, the next one last.
    let mut at = PathBuf::from(".");
    let mut ahead: Vec<OsString> = parts(file);
    // As many links as Linux follows.
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        let next = at.join(&name);
        let link = fs::read_link(&next).ok().filter(|_| links < 40);
        if link.is_some() || ahead.is_empty() {
            // Absolute and `..` are no names that could change.
            names.extend(next.file_name().map(OsString::from));
            found.extend(Directory::at(&at));
        }
        match link {
            Some(target) => {
                links += 1;
                ahead.extend(parts(&target));
            }
            None => at = next,
        }
    }
    found
}

/// The components of a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

fn look(files: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Option<Print>> {
    files
        .iter()
        .map(|file| (file.clone(), print(file)))
        .collect()
}

fn print(file: &Path) -> Option<Print> {
    let target = fs::canonicalize(file).ok()?;
    let meta = fs::metadata(&target).ok()?;
    Some(Print {
        target,
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::symlink};

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    const NEVER: Duration = Duration::from_secs(1000);

    struct Bench {
        dir: TempDir,
        watch: FileWatch,
    }

    impl Bench {
        /// Watches `names`; events alone must do unless `look_round` is short.
        fn start(dir: TempDir, names: &[&str], look_round: Duration) -> Self {
            let pace = Pace {
                debounce: Duration::from_millis(20),
                look_round,
            };
            let files: Vec<PathBuf> = names.iter().map(|name| dir.path().join(name)).collect();
            Self {
                watch: FileWatch::start(files, pace).unwrap(),
                dir,
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        async fn expect_change(&mut self, what: &str) {
            assert!(
                timeout(PATIENCE, self.watch.changed()).await.is_ok(),
                "not told: {what}"
            );
        }

        async fn expect_quiet(&mut self, what: &str) {
            let quiet = timeout(Duration::from_millis(300), self.watch.changed()).await;
            assert!(quiet.is_err(), "told without reason: {what}");
        }
    }

    fn dir_with(files: &[&str]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(dir.path().join(file), "1").unwrap();
        }
        dir
    }

    #[tokio::test]
    async fn changes_of_any_watched_file_are_told_and_no_others() {
        let dir = dir_with(&["taxiway.toml", "token", "other"]);
        let mut bench = Bench::start(dir, &["taxiway.toml", "token"], NEVER);
        bench.expect_quiet("the start").await;
        fs::write(bench.path("taxiway.toml"), "22").unwrap();
        bench.expect_change("written in place").await;
        fs::OpenOptions::new()
            .append(true)
            .open(bench.path("token"))
            .unwrap()
            .write_all(b"x")
            .unwrap();
        bench.expect_change("appended").await;
        fs::write(bench.path("other"), "22").unwrap();
        bench.expect_quiet("a neighbour").await;
    }

    /// The store's database may stand beside the configuration, and is written all the time.
    #[tokio::test]
    async fn nobody_looks_because_of_a_neighbour() {
        let bench = Bench::start(dir_with(&["taxiway.toml"]), &["taxiway.toml"], NEVER);
        let bell = Bell::default();
        let mut names = BTreeSet::new();
        directories(&bench.path("taxiway.toml"), &mut names);
        *bell.names() = names;
        let event = |kind, name: &str| notify::Event::new(kind).add_path(bench.path(name));
        let written = EventKind::Modify(notify::event::ModifyKind::Any);
        let read = EventKind::Access(AccessKind::Open(AccessMode::Any));
        assert!(bell.concerns(&event(written, "taxiway.toml")));
        assert!(!bell.concerns(&event(read, "taxiway.toml")));
        assert!(!bell.concerns(&event(written, "taxiway.db")));
        assert!(bell.concerns(&notify::Event::new(EventKind::Other)));
    }

    #[tokio::test]
    async fn editors_that_rename_are_followed_again_and_again() {
        let mut bench = Bench::start(dir_with(&["taxiway.toml"]), &["taxiway.toml"], NEVER);
        for round in 0..3 {
            fs::write(bench.path("taxiway.toml.tmp"), format!("round {round}")).unwrap();
            fs::rename(bench.path("taxiway.toml.tmp"), bench.path("taxiway.toml")).unwrap();
            bench.expect_change("renamed over").await;
            // The directory may still ring for the same change.
            bench.expect_quiet("the same again").await;
        }
        fs::remove_file(bench.path("taxiway.toml")).unwrap();
        bench.expect_change("removed").await;
        fs::write(bench.path("taxiway.toml"), "back").unwrap();
        bench.expect_change("made again").await;
    }

    #[tokio::test]
    async fn a_swapped_config_map_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let make = |version: &str| {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("taxiway.toml"), version).unwrap();
        };
        make("..v1");
        make("..v2");
        make("..v3");
        symlink("..v1", dir.path().join("..data")).unwrap();
        symlink("..data/taxiway.toml", dir.path().join("taxiway.toml")).unwrap();
        let mut bench = Bench::start(dir, &["taxiway.toml"], NEVER);
        for version in ["..v2", "..v3"] {
            symlink(version, bench.path("..data_tmp")).unwrap();
            fs::rename(bench.path("..data_tmp"), bench.path("..data")).unwrap();
            bench.expect_change(version).await;
        }
        // Behind the link, in place.
        fs::write(bench.path("..v3").join("taxiway.toml"), "edited").unwrap();
        bench.expect_change("behind the link").await;
    }

    #[tokio::test]
    async fn a_directory_made_anew_is_watched_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf")).unwrap();
        fs::write(dir.path().join("conf/taxiway.toml"), "1").unwrap();
        let mut bench = Bench::start(dir, &["conf/taxiway.toml"], NEVER);
        fs::rename(bench.path("conf"), bench.path("old")).unwrap();
        fs::create_dir(bench.path("conf")).unwrap();
        fs::remove_file(bench.path("old/taxiway.toml")).unwrap();
        bench.expect_change("gone").await;
        fs::write(bench.path("conf/taxiway.toml"), "22").unwrap();
        bench.expect_change("made anew").await;
    }

    /// Releases behind a link: what is swapped is neither the file nor its directory.
    #[tokio::test]
    async fn links_on_the_way_to_the_directory_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        for release in ["r1", "r2"] {
            fs::create_dir_all(dir.path().join(release).join("conf/sub")).unwrap();
            let file = dir.path().join(release).join("conf/sub/taxiway.toml");
            fs::write(file, release).unwrap();
        }
        symlink("r1", dir.path().join("current")).unwrap();
        symlink("current/conf", dir.path().join("conf")).unwrap();
        let mut bench = Bench::start(dir, &["conf/sub/taxiway.toml"], NEVER);
        symlink("r2", bench.path("next")).unwrap();
        fs::rename(bench.path("next"), bench.path("current")).unwrap();
        bench.expect_change("another release").await;
    }

    /// Some file systems give the inode of the old one to the new one.
    #[tokio::test]
    async fn a_directory_made_anew_at_once_is_watched_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf")).unwrap();
        fs::write(dir.path().join("conf/taxiway.toml"), "1").unwrap();
        let mut bench = Bench::start(dir, &["conf/taxiway.toml"], NEVER);
        for round in 0..4 {
            fs::remove_dir_all(bench.path("conf")).unwrap();
            fs::create_dir(bench.path("conf")).unwrap();
            fs::write(bench.path("conf/taxiway.toml"), format!("{round}")).unwrap();
            bench.expect_change("made anew").await;
            bench.expect_quiet("the same again").await;
            fs::write(bench.path("conf/taxiway.toml"), format!("{round}, edited")).unwrap();
            bench.expect_change("edited there").await;
            bench.expect_quiet("edited again").await;
        }
    }

    #[tokio::test]
    async fn a_burst_is_told_few_times_and_its_end_is_told() {
        let mut bench = Bench::start(dir_with(&["taxiway.toml"]), &["taxiway.toml"], NEVER);
        for i in 0..200 {
            fs::write(bench.path("taxiway.toml"), "x".repeat(i)).unwrap();
        }
        bench.expect_change("the burst").await;
        let mut times = 1;
        while timeout(Duration::from_millis(300), bench.watch.changed())
            .await
            .is_ok()
        {
            times += 1;
        }
        assert!(times < 20, "told {times} times");
    }

    #[tokio::test]
    async fn other_files_can_be_watched_later() {
        let other = dir_with(&["cert.pem"]);
        let mut bench = Bench::start(dir_with(&["taxiway.toml"]), &["taxiway.toml"], NEVER);
        let cert = other.path().join("cert.pem");
        bench
            .watch
            .set_files([bench.path("taxiway.toml"), cert.clone()]);
        bench.expect_quiet("newly watched").await;
        fs::write(&cert, "22").unwrap();
        bench.expect_change("the new file").await;
        bench.watch.set_files([cert.clone()]);
        bench.expect_quiet("fewer files").await;
        fs::write(bench.path("taxiway.toml"), "22").unwrap();
        bench.expect_quiet("a file no longer watched").await;
    }

    #[tokio::test]
    async fn what_no_event_tells_is_found_by_looking_round() {
        let dir = tempfile::tempdir().unwrap();
        // No directory, no watch, no event.
        let mut bench = Bench::start(dir, &["later/taxiway.toml"], Duration::from_millis(30));
        fs::create_dir(bench.path("later")).unwrap();
        fs::write(bench.path("later/taxiway.toml"), "1").unwrap();
        bench.expect_change("made where nothing was").await;
    }
}
