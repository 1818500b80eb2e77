// What one client of a bare CLI server can do to another's sessions, as calls.
//
// Each entry is `{ what, method, params, works?, varies? }`. `params` makes the call's parameters
// for a target, as a value or as JSON text where the bytes matter. `works` is the proof, on a bare
// CLI, that the attack is one; entries without it are guesses that a server might fall for. The
// order counts there: what leaves nothing to attack comes last. `varies` says that two such calls
// are never answered alike, whomever they name.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { assert, poll } from "./suite.mjs";

const text = (value) => JSON.stringify(value);
const contains = (mark) => ({ answer, target }) => assert.ok(text(answer).includes(target[mark]));
const accepted = ({ answer }) => assert.equal(answer.success, true);
const provider = (target) => ({ type: "openai", baseUrl: target.baseUrl, apiKey: target.thief });
/** A call that names nothing but the session. */
const named = ({ id }) => ({ sessionId: id });
/** The answer to a question that the victim's session asks, under the id of that session. */
const taken = (method, question, answer, under = "asking") => ({
  what: `answers a ${question} of another's session as if asked in ${under}`,
  method,
  params: (target) => ({
    sessionId: target[under], requestId: target.requests[question], ...answer,
  }),
  works: accepted,
});

export const ATTACKS = [
  { what: "lists", method: "session.list", params: () => ({}), works: contains("mark") },
  { what: "lists, newer", method: "sessions.list", params: () => ({}), works: contains("mark") },
  { what: "finds the last", method: "session.getLastId", params: () => ({}),
    works: ({ answer }) => assert.equal(typeof answer.sessionId, "string") },
  { what: "finds the last of a directory", method: "sessions.getLastForContext",
    params: ({ desk }) => ({ context: { cwd: desk } }) },
  { what: "finds by prefix", method: "sessions.findByPrefix",
    params: ({ id }) => ({ prefix: id.slice(0, 13) }), works: contains("id") },
  { what: "lists sizes", method: "sessions.getSizes", params: () => ({}), works: contains("id") },
  { what: "lists those that are not empty", method: "sessions.listNonEmptySessionIds",
    params: () => ({}), works: contains("id") },
  { what: "looks at metadata", method: "session.getMetadata", params: named,
    works: contains("mark") },
  { what: "looks at the foreground", method: "session.getForeground", params: () => ({}) },
  { what: "takes the foreground", method: "session.setForeground", params: named },
  { what: "reads the history", method: "session.getMessages", params: named,
    works: contains("mark") },
  { what: "reads, id said twice", method: "session.getMessages",
    params: ({ id, own }) => `{"sessionId":"${own}","sessionId":"${id}"}`,
    works: contains("mark") },
  { what: "reads, key escaped", method: "session.getMessages",
    params: ({ id, own }) => `{"sessionId":"${own}","session\\u0049d":"${id}"}`,
    works: contains("mark") },
  { what: "reads, id escaped", method: "session.getMessages",
    params: ({ id }) =>
      `{"sessionId":"\\u${id.charCodeAt(0).toString(16).padStart(4, "0")}${id.slice(1)}"}`,
    works: contains("mark") },
  { what: "reads files beside its own", method: "session.workspaces.readFile",
    params: ({ id, own }) => ({ sessionId: own, path: `../../${id}/events.jsonl` }) },
  { what: "copies", method: "sessions.fork", params: named,
    works: ({ answer }) => assert.equal(typeof answer.sessionId, "string") },
  { what: "changes the mode", method: "session.mode.set",
    params: ({ id }) => ({ sessionId: id, mode: "plan" }),
    works: async ({ victim }) => assert.equal(await victim.mode(), "plan") },
  { what: "takes over the plan", method: "session.mode.set",
    params: ({ id, own }) =>
      ({ sessionId: own, mode: "plan", inheritPlanBaseFromSessionId: id }) },
  { what: "renames", method: "session.name.set",
    params: ({ id, thief }) => ({ sessionId: id, name: thief }) },
  { what: "runs a command in it", method: "session.shell.exec",
    params: ({ id, desk }) => ({ sessionId: id, command: `touch ${join(desk, "stolen")}` }),
    works: ({ target }) =>
      poll("the file", () => existsSync(join(target.desk, "stolen")), 5_000) },
  { what: "hears of others' sessions", method: "ping", params: () => ({}), varies: true,
    works: ({ attacker, target }) =>
      attacker.until("a lifecycle of the victim's session", ({ seen }) => seen.some((m) =>
        m.method === "session.lifecycle" && m.params.sessionId === target.id)) },
  taken("session.tools.handlePendingToolCall", "tool", { result: "stolen" }),
  // A server looks for such a request in all its sessions.
  taken("session.tools.handlePendingToolCall", "second tool", { result: "stolen" }, "own"),
  taken("session.permissions.handlePendingPermissionRequest", "permission",
    { result: { kind: "approve-once" } }),
  taken("session.ui.handlePendingUserInput", "question",
    { response: { answer: "stolen", wasFreeform: true } }),
  { what: "attaches by resume, and pays for it", method: "session.resume",
    params: (target) => ({ sessionId: target.id, provider: provider(target), streaming: true,
      model: "stolen" }),
    works: ({ attacker, target }) => attacker.until("the victim's stream", ({ seen }) =>
      seen.some((m) => m.method === "session.event" && text(m).includes(`${target.mark}-`))) },
  { what: "attaches by create", method: "session.create",
    params: (target) => ({ sessionId: target.id, provider: provider(target), streaming: true,
      model: "stolen" }),
    works: ({ answer, target }) => assert.equal(answer.sessionId, target.id) },
  { what: "attaches by open", method: "sessions.open",
    params: ({ id }) => ({ kind: "attach", sessionId: id }), works: contains("id") },
  { what: "opens the last", method: "sessions.open", params: () => ({ kind: "resumeLast" }) },
  { what: "opens by options", method: "sessions.open",
    params: ({ id }) => ({ kind: "create", options: { sessionId: id } }) },
  { what: "sends", method: "session.send",
    params: ({ id, thief }) => ({ sessionId: id, prompt: thief }),
    works: ({ answer }) => assert.equal(typeof answer.messageId, "string") },
  { what: "steers", method: "session.send",
    params: ({ id, thief }) => ({ sessionId: id, prompt: thief, mode: "immediate" }),
    works: ({ answer }) => assert.equal(typeof answer.messageId, "string") },
  { what: "cancels calls", method: "$/cancelRequest", params: () => ({ id: 1 }) },
  { what: "aborts", method: "session.abort", params: named,
    works: ({ victim }) => victim.aborted() },
  { what: "closes", method: "sessions.close", params: named,
    works: ({ victim }) => assert.rejects(victim.mode(), /Session not found/) },
  { what: "closes what is asking", method: "sessions.close",
    params: ({ asking }) => ({ sessionId: asking }) },
  { what: "resumes what is closed", method: "session.resume",
    params: ({ closed }) => ({ sessionId: closed }),
    works: ({ answer, target }) => assert.equal(answer.sessionId, target.closed) },
  { what: "starts anew over what is closed", method: "session.create",
    params: ({ closed }) => ({ sessionId: closed }) },
  { what: "deletes by path", method: "sessions.delete",
    params: ({ id, never }) => ({ sessionId: never, sessionPath: id }) },
  { what: "deletes by age", method: "sessions.pruneOld",
    params: ({ own }) => ({ olderThanDays: 0, excludeSessionIds: [own], includeNamed: true }) },
  { what: "deletes the closed one", method: "session.delete",
    params: ({ closed }) => ({ sessionId: closed }), works: accepted },
  { what: "deletes many", method: "sessions.bulkDelete",
    params: ({ id, asking }) => ({ sessionIds: [id, asking] }),
    works: ({ answer, target }) => assert.ok(answer.freedBytes[target.id] > 0) },
  { what: "leaves its own, the last of the server", method: "session.detach",
    params: ({ own }) => ({ sessionId: own }), works: accepted },
  { what: "claims the model of all", method: "llmInference.setProvider", params: () => ({}),
    works: accepted },
  { what: "claims the files of all", method: "sessionFs.setProvider",
    params: () => ({ initialCwd: "/", sessionStatePath: "/state", conventions: "posix" }) },
  { what: "ends the server", method: "runtime.shutdown", params: () => ({}),
    works: ({ attacker }) => attacker.closed },
];

/** The parameters with which `method` names a session, in every place that it may stand. */
export function naming(method, id) {
  if (method === "sessions.enrichMetadata") return { sessions: [{ sessionId: id }] };
  return {
    sessionId: id, sessionIds: [id], toSessionId: id, expectedSessionId: id,
    expectedFromSessionId: id, options: { sessionId: id }, kind: "attach", prompt: "stolen",
    mode: "plan", requestId: id, config: { remote: false, steerable: false, explicit: false,
      silent: false },
  };
}

/** Makes one call; its outcome as text, so that outcomes can be compared. */
export async function attempt(client, { method, params }, target) {
  const value = params(target);
  const { message, answer } = client.prepare(method);
  const body = typeof value === "string" ? value : text(value);
  client.write(`{"jsonrpc":"2.0","id":${message.id},"method":"${method}","params":${body}}`);
  return answer.then(
    (result) => ({ result }),
    (error) => ({ error: { code: error.code, message: error.text ?? error.message } }),
  );
}
