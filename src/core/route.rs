//! The one table of methods: where each goes, and how far it reaches. Holds no state, looks at no
//! params but the places where sessions are named, and decides nothing about a single call.
//!
//! General rule, for methods known and unknown: a request whose params name a session goes to that
//! session's owner, and reaches no further. So only what differs from it is listed, plus methods
//! without a session, for their metric label. `docs/methods.tsv` says the same for people, method
//! by method.

pub mod catalog;
mod named;
mod policy;
mod unknown;

pub use named::{Named, NamedAt, also_named, main_session, open_refusal};
use policy::{
    ACCOUNT, CLOUD, COMMANDS, DISK, EVERYBODY, LOGS, PATH, PROVIDER, REMOTE, RUNS, SERVER_WIDE,
    SETTINGS, SHUTDOWN, TRUST,
};
pub use policy::{Policy, Profile, Verdict, verdict};
pub use unknown::{UnknownAnswer, unknown_answer};

/// What a request of a client is to Taxiway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Answered here.
    Ping,
    /// Ended here; replayed to each backend.
    Connect,
    /// By `params.sessionId`, to the owner.
    Session,
    /// `session.create`: places the session, or meets one that exists.
    Create,
    /// `session.resume`: attaches to a session that exists.
    Resume,
    /// Opens a session without subscribing to its events; pins it to its backend.
    Open,
    /// By `params.sessionId`; the id of the copy is in the result, and lives where its source does.
    Fork,
    /// By `params.sessionId`; afterwards this connection no longer hears the session.
    Detach,
    /// By `params.sessionId`; afterwards the session is gone, for everybody.
    Delete,
    /// By `params.sessionId`; afterwards the session is closed, for everybody.
    Close,
    /// By `params.sessionId`, in the order written.
    Send(SendKind),
    /// By `params.sessionId`; ends the turn and drops its queue.
    Abort,
    /// Asked of all usable backends; one merged answer.
    Aggregate(Aggregate),
    /// Split by the owners of the sessions it lists; one joined answer.
    IdsArray(IdsArray),
    /// Any usable backend.
    Any,
    /// All usable backends that hold the state; a failure names its backend.
    ServerWide(Spread),
    /// Claims a process-wide place.
    Provider(Provider),
    /// To the backend whose request carried the same `params.requestId`.
    ByRequestId,
    /// The notification `$/cancelRequest`: to wherever the call it names is.
    Cancel,
    /// By the session in `toSessionId` or `expectedSessionId`, else any.
    RemoteControl,
    /// Never forwarded, in any profile, with the reason for the client.
    Denied(&'static str),
    /// Not in the table: by `params.sessionId` if it has one, else any; the backend says -32601 if
    /// it does not know it either.
    Unknown,
}

/// When a sending method answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendKind {
    /// At once, unless `params.wait` is true: then at the end of the turn.
    WaitFlag,
    /// At the end of the turn, always.
    TurnEnd,
}

/// Questions about all sessions; `core::aggregate` merges the answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aggregate {
    /// `session.list`
    SessionList,
    /// `sessions.list`
    SessionsList,
    /// `session.getLastId`
    LastId,
    /// `sessions.getLastForContext`
    LastForContext,
    /// `sessions.getSizes`
    Sizes,
    /// `sessions.listNonEmptySessionIds`
    NonEmptyIds,
    /// `sessions.findByPrefix`
    FindByPrefix,
    /// `sessions.findByTaskId`
    FindByTaskId,
    /// `sessions.pruneOld`
    PruneOld,
}

/// Questions about the sessions they list; `core::aggregate` splits and joins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdsArray {
    /// `sessions.getClientMetadata`: `sessionIds`; answered in request order.
    GetClientMetadata,
    /// `sessions.enrichMetadata`: `sessions[].sessionId`; answered in request order.
    EnrichMetadata,
    /// `sessions.bulkDelete`: `sessionIds`.
    BulkDelete,
    /// `sessions.checkInUse`: `sessionIds`.
    CheckInUse,
}

/// Where the state that a server-wide method changes lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// In the home directory: one backend is enough where the disk is shared.
    OnDisk,
    /// In the process: every backend must be told.
    InMemory,
}

/// A process-wide place that one connection holds for all sessions of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provider {
    /// `sessionFs.setProvider`
    SessionFs,
    /// `llmInference.setProvider`
    LlmInference,
    /// `registerExtensionLaunchProvider`
    ExtensionLaunch,
    /// `plugins.builtin.set`: sent by SDKs right after `connect`; calls nobody back.
    BuiltinPlugins,
}

/// What a frame of a backend (request or notification) is to Taxiway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendClass {
    /// `session.event`: to the connection it came for; drives turns.
    Event,
    /// `session.lifecycle`: of every session of the process, to every connection.
    Lifecycle,
    /// `host.event`: session in `params.scope.sessionId`.
    HostEvent,
    /// `gitHubTelemetry.event`: of every session of the process, to those who asked for it.
    Telemetry,
    /// `shell.exit`: names a process only; to the connection it came for.
    ShellExit,
    /// A request to an attached client, by `params.sessionId`.
    Session,
    /// `hooks.invoke`: as `Session`, but every attached client must answer or the turn stands.
    Hook,
    /// A request to the holder of that place; may name no session.
    Provider(Provider),
    /// `gitHubToken.getToken`: a request by `registrationId`; may name no session.
    Token,
    /// `$/cancelRequest` for a request of the backend's own.
    Cancel,
    /// Not in the table: to the connection it came for.
    Unknown,
}

/// What differs from the general rule, sorted by method.
const METHODS: &[(&str, Class, Policy)] = {
    use Aggregate as G;
    use Class::{
        Abort, Any, ByRequestId, Cancel, Close, Connect, Create, Delete, Denied, Detach, Fork,
        Open, Ping, RemoteControl, Resume, Session,
    };
    use IdsArray as I;
    use Policy::{Allow, Deny, Filter, Never, Own};
    use Provider as P;
    const ON_DISK: Class = Class::ServerWide(Spread::OnDisk);
    const MEMORY: Class = Class::ServerWide(Spread::InMemory);
    const SEND: Class = Class::Send(SendKind::WaitFlag);
    &[
        ("$/cancelRequest", Cancel, Allow),
        ("account.getAllUsers", Any, Deny(ACCOUNT)),
        ("account.getCurrentAuth", Any, Deny(ACCOUNT)),
        ("account.getQuota", Any, Deny(ACCOUNT)),
        ("account.login", ON_DISK, Deny(ACCOUNT)),
        ("account.logout", ON_DISK, Deny(ACCOUNT)),
        ("agentRegistry.spawn", Any, Deny(RUNS)),
        ("agents.discover", Any, Deny(DISK)),
        ("agents.getDiscoveryPaths", Any, Deny(DISK)),
        ("auth.getStatus", Any, Allow),
        ("catalog.search", Any, Allow),
        ("commands.list", Any, Allow),
        ("connect", Connect, Allow),
        ("extensions.disable", ON_DISK, Deny(SERVER_WIDE)),
        ("extensions.discover", Any, Deny(DISK)),
        ("extensions.enable", ON_DISK, Deny(SERVER_WIDE)),
        ("hooks.discover", Any, Deny(DISK)),
        ("instructions.discover", Any, Deny(DISK)),
        ("instructions.getDiscoveryPaths", Any, Deny(DISK)),
        ("llmInference.httpResponseChunk", ByRequestId, Allow),
        ("llmInference.httpResponseStart", ByRequestId, Allow),
        (
            "llmInference.setProvider",
            Class::Provider(P::LlmInference),
            Deny(PROVIDER),
        ),
        ("managedSettings.clearCache", MEMORY, Deny(SERVER_WIDE)),
        ("managedSettings.read", Any, Deny(SETTINGS)),
        ("mcp.config.add", ON_DISK, Deny(SERVER_WIDE)),
        ("mcp.config.disable", ON_DISK, Deny(SERVER_WIDE)),
        ("mcp.config.enable", ON_DISK, Deny(SERVER_WIDE)),
        ("mcp.config.list", Any, Deny(SETTINGS)),
        ("mcp.config.reload", MEMORY, Deny(SERVER_WIDE)),
        ("mcp.config.remove", ON_DISK, Deny(SERVER_WIDE)),
        ("mcp.config.update", ON_DISK, Deny(SERVER_WIDE)),
        ("mcp.discover", Any, Deny(DISK)),
        ("mcp.planInstall", Any, Allow),
        ("models.getBuiltInCatalog", Any, Allow),
        ("models.list", Any, Allow),
        ("ping", Ping, Allow),
        (
            "plugins.builtin.set",
            Class::Provider(P::BuiltinPlugins),
            Deny(SERVER_WIDE),
        ),
        ("plugins.disable", ON_DISK, Deny(SERVER_WIDE)),
        ("plugins.enable", ON_DISK, Deny(SERVER_WIDE)),
        ("plugins.install", ON_DISK, Deny(SERVER_WIDE)),
        ("plugins.list", Any, Deny(DISK)),
        ("plugins.marketplaces.add", ON_DISK, Deny(SERVER_WIDE)),
        ("plugins.marketplaces.browse", Any, Allow),
        ("plugins.marketplaces.list", Any, Allow),
        ("plugins.marketplaces.refresh", ON_DISK, Deny(SERVER_WIDE)),
        ("plugins.marketplaces.remove", ON_DISK, Deny(SERVER_WIDE)),
        ("plugins.uninstall", ON_DISK, Deny(SERVER_WIDE)),
        ("plugins.update", ON_DISK, Deny(SERVER_WIDE)),
        ("plugins.updateAll", ON_DISK, Deny(SERVER_WIDE)),
        (
            "registerExtensionLaunchProvider",
            Class::Provider(P::ExtensionLaunch),
            Deny(PROVIDER),
        ),
        ("runtime.shutdown", Denied(SHUTDOWN), Never(SHUTDOWN)),
        ("secrets.addFilterValues", MEMORY, Deny(SERVER_WIDE)),
        ("session.abort", Abort, Own),
        ("session.commands.invoke", Session, Deny(COMMANDS)),
        ("session.create", Create, Own),
        ("session.debug.collectLogs", Session, Deny(LOGS)),
        ("session.delete", Delete, Own),
        ("session.destroy", Detach, Own),
        ("session.detach", Detach, Own),
        ("session.fleet.start", SEND, Own),
        ("session.getForeground", Any, Allow),
        ("session.getLastId", Class::Aggregate(G::LastId), Filter),
        (
            "session.gitHubAuth.getAllAuthAvailable",
            Session,
            Deny(ACCOUNT),
        ),
        ("session.gitHubAuth.login", Session, Deny(ACCOUNT)),
        ("session.gitHubAuth.logout", Session, Deny(ACCOUNT)),
        ("session.gitHubAuth.logoutUser", Session, Deny(ACCOUNT)),
        ("session.gitHubAuth.switchToAuth", Session, Deny(ACCOUNT)),
        ("session.list", Class::Aggregate(G::SessionList), Filter),
        ("session.mcp.registerExternalClient", Session, Deny(RUNS)),
        ("session.mcp.reloadWithConfig", Session, Deny(RUNS)),
        ("session.mcp.startServer", Session, Deny(RUNS)),
        (
            "session.permissions.folderTrust.addTrusted",
            Session,
            Deny(TRUST),
        ),
        (
            "session.permissions.locations.addToolApproval",
            Session,
            Deny(TRUST),
        ),
        ("session.resume", Resume, Own),
        ("session.send", SEND, Own),
        ("session.sendAndWait", Class::Send(SendKind::TurnEnd), Own),
        ("session.sendMessages", SEND, Own),
        ("session.shell.cancelUserRequested", Session, Deny(RUNS)),
        ("session.shell.exec", Session, Deny(RUNS)),
        ("session.shell.executeUserRequested", Session, Deny(RUNS)),
        ("session.shell.kill", Session, Deny(RUNS)),
        ("session.tools.execute", Session, Deny(RUNS)),
        (
            "sessionFs.setProvider",
            Class::Provider(P::SessionFs),
            Deny(PROVIDER),
        ),
        ("sessions.bulkDelete", Class::IdsArray(I::BulkDelete), Own),
        ("sessions.checkInUse", Class::IdsArray(I::CheckInUse), Own),
        ("sessions.close", Close, Own),
        ("sessions.configureSessionExtensions", Session, Own),
        ("sessions.connect", Open, Deny(CLOUD)),
        ("sessions.delete", Delete, Own),
        (
            "sessions.enrichMetadata",
            Class::IdsArray(I::EnrichMetadata),
            Own,
        ),
        (
            "sessions.findByPrefix",
            Class::Aggregate(G::FindByPrefix),
            Filter,
        ),
        (
            "sessions.findByTaskId",
            Class::Aggregate(G::FindByTaskId),
            Filter,
        ),
        ("sessions.fork", Fork, Own),
        ("sessions.getBoardEntryCount", Session, Own),
        (
            "sessions.getClientMetadata",
            Class::IdsArray(I::GetClientMetadata),
            Own,
        ),
        ("sessions.getEventFilePath", Session, Deny(PATH)),
        (
            "sessions.getLastForContext",
            Class::Aggregate(G::LastForContext),
            Filter,
        ),
        ("sessions.getMetadata", Session, Own),
        ("sessions.getPersistedRemoteSteerable", Session, Own),
        ("sessions.getRemoteControlStatus", Any, Deny(REMOTE)),
        ("sessions.getSizes", Class::Aggregate(G::Sizes), Filter),
        ("sessions.list", Class::Aggregate(G::SessionsList), Filter),
        (
            "sessions.listNonEmptySessionIds",
            Class::Aggregate(G::NonEmptyIds),
            Filter,
        ),
        ("sessions.loadDeferredRepoHooks", Session, Own),
        ("sessions.open", Open, Own),
        (
            "sessions.pruneOld",
            Class::Aggregate(G::PruneOld),
            Deny(EVERYBODY),
        ),
        ("sessions.readPersistedEvents", Session, Own),
        ("sessions.releaseLock", Session, Own),
        ("sessions.reloadPluginHooks", Session, Own),
        ("sessions.save", Session, Own),
        ("sessions.setAdditionalPlugins", MEMORY, Deny(SERVER_WIDE)),
        ("sessions.setRemoteControlSteering", MEMORY, Deny(REMOTE)),
        ("sessions.startRemoteControl", Session, Deny(REMOTE)),
        ("sessions.stopRemoteControl", RemoteControl, Deny(REMOTE)),
        (
            "sessions.transferRemoteControl",
            RemoteControl,
            Deny(REMOTE),
        ),
        (
            "skills.config.setDisabledSkills",
            ON_DISK,
            Deny(SERVER_WIDE),
        ),
        ("skills.config.setSkillDisabled", ON_DISK, Deny(SERVER_WIDE)),
        ("skills.discover", Any, Deny(DISK)),
        ("skills.getDiscoveryPaths", Any, Deny(DISK)),
        ("status.get", Any, Allow),
        ("tools.list", Any, Allow),
        ("user.settings.get", Any, Deny(SETTINGS)),
        ("user.settings.reload", MEMORY, Deny(SERVER_WIDE)),
        ("user.settings.set", ON_DISK, Deny(SERVER_WIDE)),
    ]
};

/// Frames of backends that are not simply for an attached client by `params.sessionId`, and those
/// that are, by their prefix (with its dot).
const BACKEND_METHODS: &[(&str, BackendClass)] = {
    use BackendClass as B;
    &[
        ("$/cancelRequest", B::Cancel),
        ("autoModeSwitch.request", B::Session),
        ("canvas.action.invoke", B::Session),
        ("canvas.close", B::Session),
        ("canvas.open", B::Session),
        ("exitPlanMode.request", B::Session),
        (
            "extensionLaunchProvider.resolve",
            B::Provider(Provider::ExtensionLaunch),
        ),
        ("factory.abort", B::Session),
        ("factory.execute", B::Session),
        ("gitHubTelemetry.event", B::Telemetry),
        ("gitHubToken.getToken", B::Token),
        ("hooks.invoke", B::Hook),
        ("host.event", B::HostEvent),
        (
            "llmInference.httpRequestChunk",
            B::Provider(Provider::LlmInference),
        ),
        (
            "llmInference.httpRequestStart",
            B::Provider(Provider::LlmInference),
        ),
        ("providerToken.getToken", B::Session),
        ("session.event", B::Event),
        ("session.lifecycle", B::Lifecycle),
        ("sessionFs.appendFile", B::Provider(Provider::SessionFs)),
        ("sessionFs.exists", B::Provider(Provider::SessionFs)),
        ("sessionFs.mkdir", B::Provider(Provider::SessionFs)),
        ("sessionFs.readFile", B::Provider(Provider::SessionFs)),
        ("sessionFs.readdir", B::Provider(Provider::SessionFs)),
        (
            "sessionFs.readdirWithTypes",
            B::Provider(Provider::SessionFs),
        ),
        ("sessionFs.rename", B::Provider(Provider::SessionFs)),
        ("sessionFs.rm", B::Provider(Provider::SessionFs)),
        ("sessionFs.sqliteExists", B::Provider(Provider::SessionFs)),
        ("sessionFs.sqliteQuery", B::Provider(Provider::SessionFs)),
        (
            "sessionFs.sqliteTransaction",
            B::Provider(Provider::SessionFs),
        ),
        ("sessionFs.stat", B::Provider(Provider::SessionFs)),
        ("sessionFs.writeFile", B::Provider(Provider::SessionFs)),
        ("shell.exit", B::ShellExit),
        ("skillProvider.list", B::Session),
        ("skillProvider.read", B::Session),
        ("systemMessage.transform", B::Session),
        ("tasks.cancel", B::Session),
        ("userInput.request", B::Session),
    ]
};

/// The class of a client's method.
pub fn classify(method: &str) -> Class {
    look_up(method).0
}

/// The class of a client's method, and how far it reaches.
pub fn look_up(method: &str) -> (Class, Policy) {
    // By which turns begin. A test sees that the table says the same.
    if method == "session.send" {
        return (Class::Send(SendKind::WaitFlag), Policy::Own);
    }
    match METHODS.binary_search_by(|(name, ..)| (*name).cmp(method)) {
        Ok(at) => (METHODS[at].1, METHODS[at].2),
        Err(_) => {
            let class = if method.starts_with("session.") {
                Class::Session
            } else {
                Class::Unknown
            };
            (class, policy::of_unlisted(method, class))
        }
    }
}

/// Whether the params of a call say how a session is to be.
pub fn shapes_session(class: Class, method: &str) -> bool {
    matches!(class, Class::Create | Class::Resume)
        || matches!(method, "session.options.update" | "session.mode.set")
}

/// The event by which a session asks for what calls of `method` answer, if the CLI takes such an
/// answer under the id of any session: it finds the one that asked by `params.requestId` alone.
pub fn asked_by(method: &str) -> Option<&'static str> {
    (method == "session.tools.handlePendingToolCall").then_some("external_tool.requested")
}

/// Every method that clients of CLI 1.0.102 may call, sorted: what can be said of each by name.
pub fn methods() -> Vec<&'static str> {
    let listed = METHODS.iter().map(|(method, ..)| *method);
    let mut all: Vec<_> = listed.chain(catalog::session_methods()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The class of a backend's method.
pub fn classify_backend(method: &[u8]) -> BackendClass {
    // Nearly all that backends send.
    if method == b"session.event" {
        return BackendClass::Event;
    }
    match BACKEND_METHODS.binary_search_by(|(name, _)| name.as_bytes().cmp(method)) {
        Ok(at) => BACKEND_METHODS[at].1,
        Err(_) => BackendClass::Unknown,
    }
}

/// The label `class` of metrics: one of a fixed few, whatever a client sends.
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::Ping => "ping",
        Class::Connect => "connect",
        Class::Session => "session",
        Class::Create => "create",
        Class::Resume => "resume",
        Class::Open => "open",
        Class::Fork => "fork",
        Class::Detach => "detach",
        Class::Delete => "delete",
        Class::Close => "close",
        Class::Send(_) => "send",
        Class::Abort => "abort",
        Class::Aggregate(_) => "aggregate",
        Class::IdsArray(_) => "ids_array",
        Class::Any => "any",
        Class::ServerWide(_) => "server_wide",
        Class::Provider(_) => "provider",
        Class::ByRequestId => "by_request_id",
        Class::Cancel => "cancel",
        Class::RemoteControl => "remote_control",
        Class::Denied(_) => "denied",
        Class::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests;
