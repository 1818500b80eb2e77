//! What becomes of a call's effect when its session is opened again in another process, or in the
//! same one after it was closed: the one table of that. Holds no state and decides about no session.
//!
//! Found by experiment with CLI 1.0.102: two processes on one home, the first killed. What is not
//! in the table changes nothing if its name says that it only looks, and is else taken for lost.

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It only looks: it can be repeated whatever became of it.
    Read,
    /// It is on disk, or nothing that lasts.
    Kept,
    /// It becomes an event of the history, which is on disk some 150 ms later, or at once with
    /// `sessions.save`.
    Flush,
    /// Like [`Effect::Flush`]; from then on the parameters' own `model` must not be given again, since an explicit
    /// one resets the choice (PROTOCOL §10).
    ModelChosen,
    /// Gone with the process; the same request restores it, and only the last one counts.
    RepeatLast,
    /// Gone with the process; the same requests restore it, each of them.
    RepeatEach,
    /// It answers something that a turn waits for, by `params.requestId`, and says whether that was
    /// still wanted: so it can be repeated. It must not be hurried to disk: a turn whose tool is
    /// complete there is not taken up again, one whose tool is pending is.
    Answer,
    /// Gone; the same request restores it under a handle of its own, in `result.handle`.
    Interest,
    /// Takes back the interest of this `params.handle`.
    Disinterest,
    /// Gone with the process for good.
    Lost,
}

/// Sorted by method.
const EFFECTS: &[(&str, Effect)] = {
    use Effect::{
        Answer, Disinterest, Flush, Interest, Kept, ModelChosen, Read, RepeatEach, RepeatLast,
    };
    &[
        ("session.agent.deselect", RepeatEach),
        ("session.agent.reload", Kept),
        ("session.agent.select", RepeatEach),
        ("session.agent.setPrompt", RepeatLast),
        ("session.cancelAllBackgroundAgents", Kept),
        ("session.commands.enqueue", Kept),
        ("session.commands.finalizeInvocationEffect", Kept),
        ("session.commands.handlePendingCommand", Kept),
        ("session.commands.respondToQueuedCommand", Kept),
        ("session.completions.request", Read),
        ("session.eventLog.registerInterest", Interest),
        ("session.eventLog.releaseInterest", Disinterest),
        ("session.eventLog.tail", Read),
        ("session.extensions.reload", Kept),
        ("session.extensions.sendAttachmentsToMessage", Kept),
        ("session.gitHubAuth.setCredentials", RepeatEach),
        ("session.history.abortManualCompaction", Kept),
        ("session.history.cancelBackgroundCompaction", Kept),
        ("session.history.clearContext", Flush),
        ("session.history.compact", Flush),
        ("session.history.rewind", Flush),
        ("session.history.summarizeForHandoff", Read),
        ("session.history.truncate", Flush),
        ("session.interruptMainTurn", Kept),
        ("session.limitPrediction.predict", Read),
        ("session.log", Flush),
        ("session.lsp.initialize", RepeatEach),
        ("session.mcp.apps.diagnose", Read),
        ("session.mcp.apps.setHostContext", RepeatLast),
        ("session.mcp.cancelSamplingExecution", Kept),
        ("session.mcp.configureGitHub", RepeatEach),
        ("session.mcp.disable", RepeatEach),
        ("session.mcp.enable", RepeatEach),
        (
            "session.mcp.headers.handlePendingHeadersRefreshRequest",
            Kept,
        ),
        ("session.mcp.moveLoadingToBackground", Kept),
        ("session.mcp.oauth.authenticationStateChanged", Kept),
        ("session.mcp.oauth.handlePendingRequest", Kept),
        ("session.mcp.oauth.probe", Read),
        ("session.mcp.oauth.respond", Kept),
        ("session.mcp.reload", RepeatEach),
        ("session.mcp.reloadWithConfig", RepeatEach),
        ("session.mcp.removeGitHub", RepeatEach),
        ("session.mcp.restartServer", RepeatEach),
        ("session.mcp.setEnvValueMode", RepeatLast),
        ("session.mcp.startServer", RepeatEach),
        ("session.mcp.stopServer", RepeatEach),
        ("session.metadata.activity", Read),
        ("session.metadata.contextInfo", Read),
        ("session.metadata.recomputeContextTokens", Kept),
        ("session.metadata.recordContextChange", Kept),
        ("session.metadata.setWorkingDirectory", RepeatLast),
        ("session.metadata.snapshot", Read),
        ("session.metadata.updateClientMetadata", Kept),
        ("session.mode.set", Flush),
        ("session.model.applyStartupOverlay", RepeatEach),
        ("session.model.setAllowedModels", RepeatLast),
        ("session.model.setReasoningEffort", ModelChosen),
        ("session.model.switchAutoTier", ModelChosen),
        ("session.model.switchTo", ModelChosen),
        ("session.name.set", Kept),
        ("session.name.setAuto", Kept),
        ("session.options.update", RepeatEach),
        ("session.permissions.configure", RepeatLast),
        ("session.permissions.folderTrust.addTrusted", Kept),
        ("session.permissions.handlePendingPermissionRequest", Answer),
        ("session.permissions.locations.addToolApproval", Kept),
        ("session.permissions.locations.apply", RepeatEach),
        ("session.permissions.modifyRules", RepeatEach),
        ("session.permissions.notifyPromptShown", Kept),
        ("session.permissions.paths.add", RepeatEach),
        ("session.permissions.paths.updatePrimary", RepeatLast),
        ("session.permissions.resetSessionApprovals", RepeatEach),
        ("session.permissions.setApproveAll", RepeatLast),
        ("session.permissions.setMode", Flush),
        ("session.permissions.setRequired", RepeatLast),
        ("session.permissions.urls.setUnrestrictedMode", RepeatLast),
        ("session.plan.delete", Kept),
        ("session.plan.update", Kept),
        ("session.plugins.reload", Kept),
        ("session.provider.add", RepeatEach),
        ("session.queue.beginDeferredIdleDrain", Kept),
        ("session.queue.clear", Kept),
        ("session.queue.consumeSystemNotifications", Kept),
        ("session.queue.deferSessionIdle", Kept),
        ("session.queue.enqueueResumePending", Kept),
        ("session.queue.finishDeferredIdleDrain", Kept),
        ("session.queue.hasPending", Read),
        ("session.queue.moveItem", Kept),
        ("session.queue.process", Kept),
        ("session.queue.removeAt", Kept),
        ("session.queue.removeMostRecent", Kept),
        ("session.queue.sendNow", Kept),
        ("session.queue.setDrainPaused", RepeatLast),
        ("session.queue.snapshot", Read),
        ("session.queue.updateText", Kept),
        ("session.remote.notifySteerableChanged", Kept),
        ("session.schedule.add", Flush),
        ("session.schedule.addAt", Flush),
        ("session.schedule.addCron", Flush),
        ("session.schedule.addSelfPaced", Flush),
        ("session.schedule.hasSelfPaced", Read),
        ("session.schedule.hydrate", Flush),
        ("session.schedule.rearmSelfPaced", Flush),
        ("session.schedule.stop", Flush),
        ("session.sendSystemNotification", Flush),
        ("session.settings.evaluatePredicate", Read),
        ("session.settings.snapshot", Read),
        ("session.shell.cancelUserRequested", Kept),
        ("session.shell.kill", Kept),
        ("session.skills.disable", RepeatEach),
        ("session.skills.enable", RepeatEach),
        ("session.skills.ensureLoaded", Kept),
        ("session.skills.reload", Kept),
        ("session.suspend", Kept),
        ("session.tasks.cancel", Kept),
        ("session.tasks.refresh", Kept),
        ("session.tasks.waitForPending", Kept),
        ("session.telemetry.setFeatureOverrides", RepeatLast),
        ("session.tools.handlePendingToolCall", Answer),
        ("session.tools.initializeAndValidate", Kept),
        ("session.tools.set", RepeatLast),
        ("session.tools.taskCompleteEventData", Read),
        ("session.tools.updateSubagentSettings", RepeatLast),
        ("session.ui.ephemeralQuery", Kept),
        ("session.ui.handlePendingAutoModeSwitch", Kept),
        ("session.ui.handlePendingElicitation", Kept),
        ("session.ui.handlePendingExitPlanMode", Kept),
        ("session.ui.handlePendingSampling", Kept),
        ("session.ui.handlePendingSessionLimitsExhausted", Kept),
        ("session.ui.handlePendingUserInput", Kept),
        ("session.workspaces.addSummary", Kept),
        ("session.workspaces.autopilotObjectiveExists", Read),
        ("session.workspaces.createDirectory", Kept),
        ("session.workspaces.createFile", Kept),
        ("session.workspaces.deleteAutopilotObjective", Kept),
        ("session.workspaces.diff", Read),
        ("session.workspaces.ensure", Kept),
        ("session.workspaces.removePath", Kept),
        ("session.workspaces.renamePath", Kept),
        ("session.workspaces.saveLargePaste", Kept),
        ("session.workspaces.statFile", Read),
        ("session.workspaces.truncateSummaries", Kept),
        ("session.workspaces.updateMetadata", Kept),
        ("session.workspaces.writeAutopilotObjective", Kept),
    ]
};

/// How the last part of a method's name begins if it only looks.
const LOOKS: &[&str] = &[
    "get", "list", "read", "is", "check", "find", "search", "resolve", "preview", "pending",
];

impl Effect {
    /// Whether a call may be made once more when its backend died with it.
    pub fn is_repeatable(self) -> bool {
        match self {
            Self::Read
            | Self::RepeatLast
            | Self::RepeatEach
            | Self::Answer
            | Self::Interest
            | Self::Disinterest => true,
            Self::Kept | Self::Flush | Self::ModelChosen | Self::Lost => false,
        }
    }

    /// Whether an acknowledgement is worth something only once `sessions.save` was answered.
    pub fn wants_save(self) -> bool {
        matches!(self, Self::Flush | Self::ModelChosen)
    }
}

/// What becomes of the effect of a call of `method`.
pub fn effect_of(method: &str) -> Effect {
    if let Ok(at) = EFFECTS.binary_search_by(|(name, _)| (*name).cmp(method)) {
        return EFFECTS[at].1;
    }
    let last = method.rsplit('.').next().unwrap_or(method);
    let looks = LOOKS.iter().any(|look| {
        last.strip_prefix(look)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_lowercase()))
    });
    if looks { Effect::Read } else { Effect::Lost }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_each_method_once() {
        assert!(EFFECTS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn what_only_looks_changes_nothing_and_what_is_unknown_is_lost() {
        for (method, effect) in [
            ("session.getMessages", Effect::Read),
            ("session.mode.get", Effect::Read),
            ("session.permissions.pendingRequests", Effect::Read),
            ("session.model.switchTo", Effect::ModelChosen),
            ("session.issue", Effect::Lost),
            ("session.mode.set", Effect::Flush),
            ("session.getaway", Effect::Lost),
            ("session.shell.exec", Effect::Lost),
        ] {
            assert_eq!(effect_of(method), effect, "{method}");
        }
    }
}
