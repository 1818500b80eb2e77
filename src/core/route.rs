//! Method to routing class: the one table of methods. Holds no state, looks at no params, and
//! decides nothing about a single call.
//!
//! General rule, for methods known and unknown: a request whose params name a session goes to that
//! session's owner. So only what differs from it is listed, plus methods without a session, for
//! their metric label. `docs/methods.tsv` says the same for people, method by method.

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

const NO_SHUTDOWN: &str =
    "it would end a CLI server that others use too; drain the backend in Taxiway instead";

/// What differs from the general rule, sorted by method.
const METHODS: &[(&str, Class)] = {
    use Aggregate as G;
    use Class::{
        Abort, Any, ByRequestId, Cancel, Close, Connect, Create, Delete, Denied, Detach, Fork,
        Open, Ping, RemoteControl, Resume, Session,
    };
    use IdsArray as I;
    use Provider as P;
    const DISK: Class = Class::ServerWide(Spread::OnDisk);
    const MEMORY: Class = Class::ServerWide(Spread::InMemory);
    const SEND: Class = Class::Send(SendKind::WaitFlag);
    &[
        ("$/cancelRequest", Cancel),
        ("account.getAllUsers", Any),
        ("account.getCurrentAuth", Any),
        ("account.getQuota", Any),
        ("account.login", DISK),
        ("account.logout", DISK),
        ("agentRegistry.spawn", Any),
        ("agents.discover", Any),
        ("agents.getDiscoveryPaths", Any),
        ("auth.getStatus", Any),
        ("catalog.search", Any),
        ("commands.list", Any),
        ("connect", Connect),
        ("extensions.disable", DISK),
        ("extensions.discover", Any),
        ("extensions.enable", DISK),
        ("hooks.discover", Any),
        ("instructions.discover", Any),
        ("instructions.getDiscoveryPaths", Any),
        ("llmInference.httpResponseChunk", ByRequestId),
        ("llmInference.httpResponseStart", ByRequestId),
        ("llmInference.setProvider", Class::Provider(P::LlmInference)),
        ("managedSettings.clearCache", MEMORY),
        ("managedSettings.read", Any),
        ("mcp.config.add", DISK),
        ("mcp.config.disable", DISK),
        ("mcp.config.enable", DISK),
        ("mcp.config.list", Any),
        ("mcp.config.reload", MEMORY),
        ("mcp.config.remove", DISK),
        ("mcp.config.update", DISK),
        ("mcp.discover", Any),
        ("mcp.planInstall", Any),
        ("models.getBuiltInCatalog", Any),
        ("models.list", Any),
        ("ping", Ping),
        ("plugins.builtin.set", Class::Provider(P::BuiltinPlugins)),
        ("plugins.disable", DISK),
        ("plugins.enable", DISK),
        ("plugins.install", DISK),
        ("plugins.list", Any),
        ("plugins.marketplaces.add", DISK),
        ("plugins.marketplaces.browse", Any),
        ("plugins.marketplaces.list", Any),
        ("plugins.marketplaces.refresh", DISK),
        ("plugins.marketplaces.remove", DISK),
        ("plugins.uninstall", DISK),
        ("plugins.update", DISK),
        ("plugins.updateAll", DISK),
        (
            "registerExtensionLaunchProvider",
            Class::Provider(P::ExtensionLaunch),
        ),
        ("runtime.shutdown", Denied(NO_SHUTDOWN)),
        ("secrets.addFilterValues", MEMORY),
        ("session.abort", Abort),
        ("session.create", Create),
        ("session.delete", Delete),
        ("session.destroy", Detach),
        ("session.detach", Detach),
        ("session.fleet.start", SEND),
        ("session.getForeground", Any),
        ("session.getLastId", Class::Aggregate(G::LastId)),
        ("session.list", Class::Aggregate(G::SessionList)),
        ("session.resume", Resume),
        ("session.send", SEND),
        ("session.sendAndWait", Class::Send(SendKind::TurnEnd)),
        ("session.sendMessages", SEND),
        ("sessionFs.setProvider", Class::Provider(P::SessionFs)),
        ("sessions.bulkDelete", Class::IdsArray(I::BulkDelete)),
        ("sessions.checkInUse", Class::IdsArray(I::CheckInUse)),
        ("sessions.close", Close),
        ("sessions.configureSessionExtensions", Session),
        ("sessions.connect", Open),
        ("sessions.delete", Delete),
        (
            "sessions.enrichMetadata",
            Class::IdsArray(I::EnrichMetadata),
        ),
        ("sessions.findByPrefix", Class::Aggregate(G::FindByPrefix)),
        ("sessions.findByTaskId", Class::Aggregate(G::FindByTaskId)),
        ("sessions.fork", Fork),
        ("sessions.getBoardEntryCount", Session),
        (
            "sessions.getClientMetadata",
            Class::IdsArray(I::GetClientMetadata),
        ),
        ("sessions.getEventFilePath", Session),
        (
            "sessions.getLastForContext",
            Class::Aggregate(G::LastForContext),
        ),
        ("sessions.getMetadata", Session),
        ("sessions.getPersistedRemoteSteerable", Session),
        ("sessions.getRemoteControlStatus", Any),
        ("sessions.getSizes", Class::Aggregate(G::Sizes)),
        ("sessions.list", Class::Aggregate(G::SessionsList)),
        (
            "sessions.listNonEmptySessionIds",
            Class::Aggregate(G::NonEmptyIds),
        ),
        ("sessions.loadDeferredRepoHooks", Session),
        ("sessions.open", Open),
        ("sessions.pruneOld", Class::Aggregate(G::PruneOld)),
        ("sessions.readPersistedEvents", Session),
        ("sessions.releaseLock", Session),
        ("sessions.reloadPluginHooks", Session),
        ("sessions.save", Session),
        ("sessions.setAdditionalPlugins", MEMORY),
        ("sessions.setRemoteControlSteering", MEMORY),
        ("sessions.startRemoteControl", Session),
        ("sessions.stopRemoteControl", RemoteControl),
        ("sessions.transferRemoteControl", RemoteControl),
        ("skills.config.setDisabledSkills", DISK),
        ("skills.config.setSkillDisabled", DISK),
        ("skills.discover", Any),
        ("skills.getDiscoveryPaths", Any),
        ("status.get", Any),
        ("tools.list", Any),
        ("user.settings.get", Any),
        ("user.settings.reload", MEMORY),
        ("user.settings.set", DISK),
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
    match METHODS.binary_search_by(|(name, _)| (*name).cmp(method)) {
        Ok(at) => METHODS[at].1,
        Err(_) if method.starts_with("session.") => Class::Session,
        Err(_) => Class::Unknown,
    }
}

/// The class of a backend's method.
pub fn classify_backend(method: &str) -> BackendClass {
    match BACKEND_METHODS.binary_search_by(|(name, _)| (*name).cmp(method)) {
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
