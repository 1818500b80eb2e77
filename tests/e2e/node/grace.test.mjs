// A client that dies in the middle of a turn and comes back: the turn went on, and everything is
// as it left it. After the grace nothing of it is left open.
//
// Runs only through Taxiway.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { defineTool } from "@github/copilot-sdk";
import { cleanEnvironment, launch } from "../pool.mjs";
import {
  ask, assert, newId, nextEvent, poll, promptOf, usePool, within,
} from "./suite.mjs";

const GRACE_MS = 6_000;
const { pool, scenario, config, params, told, owners } = usePool({
  mode: "taxiway",
  config: { sessions: { detach_grace: `${GRACE_MS}ms` } },
});

/** A client process with a session in a turn; `heard(word)` waits for a line that it prints. */
async function startVictim(kit, id, prompt) {
  const { onPermissionRequest: _, ...rest } = config(id);
  const script = join(import.meta.dirname, "victim.mjs");
  const victim = launch(process.execPath, [script, pool.address, JSON.stringify(rest), prompt], {
    cwd: import.meta.dirname,
    env: cleanEnvironment(join(pool.root, "victim-home")),
    log: join(pool.root, `victim-${id}.log`),
  });
  kit.later(() => victim.stop("SIGKILL"));
  return {
    heard: (word) => victim.line(new RegExp(`^${word}$`, "m")),
    kill: () => victim.stop("SIGKILL"),
  };
}

const probe = (calls = []) => defineTool("probe", {
  description: "A tool that both clients have", parameters: { type: "object", properties: {} },
  skipPermission: true,
  handler: () => {
    calls.push("probe");
    return "probed";
  },
});

/** Ends the client; its session has to stay open where it was. */
async function killed(victim, id) {
  const before = await owners(id);
  assert.equal(before.length, 1);
  await victim.kill();
  // A CLI without a proxy closes the session within milliseconds.
  await new Promise((done) => setTimeout(done, 500));
  assert.deepEqual(await owners(id), before, "the turn was closed with its client");
}

/** The messages of the session: `user: text` and `assistant: text`. */
const history = async (session) => (await session.getEvents())
  .filter(({ type, data }) => /^(user|assistant)\.message$/.test(type) && data.content)
  .map(({ type, data }) => `${type.split(".")[0]}: ${promptOf(data.content)}`);

scenario("killed in a streaming turn, back within the grace: the turn is whole", async (kit) => {
  const id = newId("stream");
  const prompt = `[[hold ${id}]] [[say the whole answer]]`;
  const victim = await startVictim(kit, id, prompt);
  await victim.heard("assistant.message_delta");
  await killed(victim, id);

  const calls = [];
  const client = await kit.client();
  const session = await within("resume", 5_000,
    client.resumeSession(id, config(id, { tools: [probe(calls)] })));
  const idle = nextEvent(session, "session.idle");
  pool.model.release(id);
  assert.notEqual((await idle).data.aborted, true);
  assert.equal(pool.model.requests(id).length, 2, "the model was asked again");
  assert.deepEqual((await history(session)).slice(-2),
    [`user: ${prompt}`, "assistant: the whole answer"]);

  const results = JSON.parse(await ask(session, "[[tool probe {}]] [[results]]"));
  assert.deepEqual(results, ["probed"]);
  assert.deepEqual(calls, ["probe"]);
  assert.deepEqual(told(id), ["before", prompt, "[[tool probe {}]] [[results]]"]);
  assert.equal((await owners(id)).length, 1);
});

scenario("killed in a turn that ends before it is back: the answer is in the history",
  async (kit) => {
    const id = newId("ended");
    const prompt = `[[hold ${id}]] [[say nobody heard this]]`;
    const victim = await startVictim(kit, id, prompt);
    await victim.heard("assistant.message_delta");
    await killed(victim, id);
    pool.model.release(id);
    await new Promise((done) => setTimeout(done, 1_000));
    const client = await kit.client();
    const session = await within("resume", 5_000,
      client.resumeSession(id, config(id, { tools: [probe()] })));
    assert.deepEqual((await history(session)).slice(-2),
      [`user: ${prompt}`, "assistant: nobody heard this"]);
    assert.equal(await ask(session, "after [[say goes on]]"), "goes on");
  });

scenario("killed with a tool pending: the new client answers it", async (kit) => {
  const id = newId("pending");
  const prompt = "[[tool probe {}]] [[results]]";
  const victim = await startVictim(kit, id, prompt);
  await victim.heard("called");
  await killed(victim, id);

  const client = await kit.raw();
  const tool = { name: "probe", description: "x", parameters: { type: "object" } };
  await within("resume", 5_000, client.call("session.resume",
    params(id, { tools: [{ ...tool, skipPermission: true }] })));
  const { events } = await client.call("session.getMessages", { sessionId: id });
  const requests = events.filter(({ type }) => type === "external_tool.requested");
  assert.equal(requests.length, 1);
  const { requestId } = requests[0].data;
  assert.deepEqual(await client.call("session.tools.handlePendingToolCall",
    { sessionId: id, requestId, result: "answered by the next one" }), { success: true });
  const idle = await client.event(id, "session.idle");
  assert.notEqual(idle.data.aborted, true);
  const { messages } = pool.model.requests(id).at(-1);
  assert.match(messages.at(-1).text, /answered by the next one/);
});

scenario("killed with a question open: the new client is asked", async (kit) => {
  const id = newId("question");
  const prompt = "[[ask Which colour?]] [[results]]";
  const victim = await startVictim(kit, id, prompt);
  await victim.heard("asked");
  await killed(victim, id);

  const client = await kit.client();
  const questions = [];
  let idle;
  const ended = new Promise((resolve) => {
    idle = resolve;
  });
  await within("resume", 5_000, client.resumeSession(id, config(id, {
    tools: [probe()],
    onUserInputRequest: ({ question }) => {
      questions.push(question);
      return { answer: "green", wasFreeform: true };
    },
    onEvent: ({ type, data }) => type === "session.idle" && idle(data),
  })));
  assert.notEqual((await within("the turn's end", 10_000, ended)).aborted, true);
  assert.deepEqual(questions, ["Which colour?"]);
  assert.match(pool.model.requests(id).at(-1).messages.at(-1).text, /green/);
});

scenario("not back within the grace: closed, and its tools are free", async (kit) => {
  const id = newId("gone");
  const victim = await startVictim(kit, id, `[[hold ${id}]] [[len 3]]`);
  await victim.heard("assistant.message_delta");
  const from = performance.now();
  await victim.kill();
  await poll("closed", async () => (await owners(id)).length === 0, GRACE_MS + 5_000, 50);
  const took = performance.now() - from;
  assert.ok(took >= GRACE_MS - 500, `closed after ${took.toFixed(0)} ms already`);

  const client = await kit.client();
  const session = await client.resumeSession(id, config(id, { tools: [probe()] }));
  const results = JSON.parse(await ask(session, "[[tool probe {}]] [[results]]"));
  assert.deepEqual(results, ["probed"]);
  assert.equal(told(id)[0], "before");
});

scenario("a client that is idle leaves nothing open behind it", async (kit) => {
  const client = await kit.raw();
  const id = newId("idle");
  await client.call("session.create", params(id));
  client.destroy();
  // The grace is for turns: an idle session is closed with its client.
  await poll("closed", async () => (await owners(id)).length === 0, 3_000, 50);
});

scenario("stop() in a turn is a goodbye: no grace", async (kit) => {
  const client = await kit.client();
  const id = newId("goodbye");
  const session = await client.createSession(config(id));
  await session.send({ prompt: `[[hold ${id}]] [[len 3]]` });
  await pool.model.held(id);
  await within("stop", 5_000, client.stop());
  await poll("closed", async () => (await owners(id)).length === 0, 3_000, 50);
});

/** A client with hooks in a turn that waits for one of them, and a bystander in the same session. */
async function hooked(kit, name) {
  const id = newId(name);
  const mark = join(pool.root, `mark-${id}`);
  const client = await kit.raw();
  let holds = false;
  client.onRequest = (method, { hookType }) =>
    (method === "hooks.invoke" && !(holds && hookType === "preToolUse") ? {} : undefined);
  await client.call("session.create", params(id, { hooks: true }));
  await client.call("session.permissions.setMode", { sessionId: id, mode: "allow-all" });
  const other = await kit.raw();
  await other.call("session.resume", params(id));
  holds = true;
  const command = JSON.stringify({ command: `touch ${mark}`, description: "x" });
  await client.call("session.send", { sessionId: id, prompt: `[[tool bash ${command}]] [[results]]` });
  const isHook = (m) => m.method === "hooks.invoke" && m.params.hookType === "preToolUse";
  await client.until("the hook", () => client.seen.find(isHook));
  return { id, mark, client, other };
}

scenario("killed with a hook open: the new client judges the tool", async (kit) => {
  for (const allows of [true, false]) {
    const { id, mark, client, other } = await hooked(kit, allows ? "allow" : "deny");
    other.destroy();
    client.destroy();
    await new Promise((done) => setTimeout(done, 300));
    const next = await kit.raw();
    const asked = [];
    next.onRequest = (method, { hookType }) => {
      if (method !== "hooks.invoke") return undefined;
      asked.push(hookType);
      if (hookType !== "preToolUse" || allows) return {};
      return { output: { permissionDecision: "deny", permissionDecisionReason: "no" } };
    };
    await within("resume", 5_000, next.call("session.resume", params(id, { hooks: true })));
    const idle = await next.event(id, "session.idle");
    assert.notEqual(idle.data.aborted, true);
    assert.equal(asked[0], "preToolUse");
    assert.equal(existsSync(mark), allows);
  }
});

scenario("not back with a hook open: the tool does not run", async (kit) => {
  const { id, mark, client, other } = await hooked(kit, "unjudged");
  client.destroy();
  const idle = await other.event(id, "session.idle", 0, GRACE_MS + 5_000);
  assert.equal(idle.data.aborted, true);
  await new Promise((done) => setTimeout(done, 500));
  assert.equal(existsSync(mark), false, "the tool ran without its hook");
});
