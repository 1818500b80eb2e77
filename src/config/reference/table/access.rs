//! `[access]`: part of the table, and nothing else.

use super::{Absent, Kind, Reload, Section, Shape, choice, key};

pub(super) const ACCESS: Section = Section {
    name: "access",
    shape: Shape::Table,
    text: "Which methods clients may use: a principal's own lists go before these, and these \
           before the profile. Of several entries that fit, the longest counts. \
           `taxiway check --methods` prints what comes of it; \
           [`methods.tsv`](methods.tsv) has what each method reaches.",
    keys: &[
        key(
            "profile",
            choice(&["multi-tenant", "single-tenant"]),
            Absent::Means(
                "`\"single-tenant\"`; `\"multi-tenant\"` where clients must say who they are",
            ),
            Reload::Live,
            "`multi-tenant`: methods that reach further than the caller's own sessions (the \
             server's host, its account and settings, other users) are answered with -32014 \
             and the reason, and methods that Taxiway does not know and that are not about a \
             session with -32601. `single-tenant`: everything but `runtime.shutdown`.",
        ),
        key(
            "allow",
            Kind::Names,
            Absent::Words(&[]),
            Reload::Live,
            "Allowed although the profile denies it, as in `[\"session.shell.*\"]`.",
        ),
        key(
            "deny",
            Kind::Names,
            Absent::Words(&[]),
            Reload::Live,
            "Denied although the profile allows it.",
        ),
        key(
            "deny_params",
            Kind::Names,
            Absent::Means(
                "`[\"cloud\", \"configDir\", \"enableSessionStore\", \"persistPlanSelection\", \
                 \"pickerSettingsContext\"]` with `multi-tenant`, else none",
            ),
            Reload::Live,
            "Parameters that `session.create`, `session.resume`, `session.options.update` and \
             `session.mode.set` may not have: answered with -32014. `*` stands for any member, as in \
             `\"mcpServers.*.command\"`, which denies programs on the server's host.",
        ),
    ],
};
