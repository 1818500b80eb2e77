// Sessions that several clients share or that are used in ways that the SDK's API hides: order,
// steering, ids, reopening. Runs against one CLI and against Taxiway; what only Taxiway promises
// is tested only there.

import { defineTool } from "@github/copilot-sdk";
import {
  ask, assert, CallError, mode, newId, nextEvent, poll, promptOf, stopped, usePool, within,
} from "./suite.mjs";

const { pool, scenario, config, params, told, owners } = usePool();

const tool = (name, calls) =>
  defineTool(name, {
    description: `Gives ${name}`,
    parameters: { type: "object", properties: {} },
    handler: () => {
      calls.push(name);
      return `${name} result`;
    },
  });
/** Both heard the same events, whole and in the same order, from the prompt on. */
function sameTurn(ours, theirs) {
  // Before the prompt there may be events of a client's own attaching.
  const [one, other] = [ours, theirs].map((events) =>
    events.slice(events.findIndex(({ type }) => type === "user.message")));
  assert.equal(one[0]?.type, "user.message");
  assert.ok(one.length > 20, `only ${one.length} events`);
  const at = one.findIndex((event, i) => JSON.stringify(event) !== JSON.stringify(other[i]));
  assert.equal(at, -1, `event ${at}: ${JSON.stringify(one[at])} and ${JSON.stringify(other[at])}`);
  assert.equal(one.length, other.length);
}

/** The same for a raw client, which answers the call itself. */
const rawTool = (name) => ({
  name, description: name, parameters: { type: "object" }, skipPermission: true,
});

scenario("two clients on one session meet on one CLI and both hear it", async (kit) => {
  const alice = await kit.client();
  const bob = await kit.client();
  const id = newId("shared");
  const calls = [];
  const aliceSession = await alice.createSession(config(id, { tools: [tool("alpha", calls)] }));
  await ask(aliceSession, "I am Alice");

  const clash = "Request session.resume failed with message: "
    + "External tool name clash: alpha already registered by another connection";
  await assert.rejects(
    bob.resumeSession(id, config(id, { tools: [tool("alpha", calls)] })),
    (error) => error.code === -32603 && error.message === clash,
  );
  const bobSession = await bob.resumeSession(id, config(id, { tools: [tool("beta", calls)] }));
  assert.equal((await owners(id)).length, 1);

  const heard = { alice: [], bob: [] };
  aliceSession.on((event) => heard.alice.push(event));
  bobSession.on((event) => heard.bob.push(event));
  const aliceIdle = nextEvent(aliceSession, "session.idle");
  await ask(bobSession, "I am Bob [[tool alpha {}]] [[tool beta {}]]");
  await aliceIdle;
  assert.deepEqual(calls, ["alpha", "beta"]);
  sameTurn(heard.alice, heard.bob);
  assert.equal(told(id).length, 2);

  // Both at once: the CLI queues, no turn is lost, and each client sees both.
  const both = [nextEvent(aliceSession, "session.idle"), nextEvent(bobSession, "session.idle")];
  await Promise.all([
    aliceSession.send({ prompt: "[[len 20]] from Alice" }),
    bobSession.send({ prompt: "[[len 20]] from Bob" }),
  ]);
  await Promise.all(both);
  await poll("both prompts at the model", () => told(id).length === 4, 5_000);

  await stopped(alice);
  assert.equal((await owners(id)).length, 1, "closed although Bob is attached");
  assert.equal(await ask(bobSession, "[[say alone]]"), "alone");
  await stopped(bob);
});

scenario("a dropped connection frees its session and tool names", async (kit) => {
  const id = newId("drop");
  const first = await kit.raw();
  await first.call("session.create", params(id, { tools: [rawTool("alpha")] }));
  await first.call("session.send", { sessionId: id, prompt: "[[say one]]" });
  await first.event(id, "session.idle");
  first.destroy();
  await poll("closed", async () => (await owners(id)).length === 0, 5_000);
  const second = await kit.raw();
  await second.call("session.resume", params(id, { tools: [rawTool("alpha")] }));
  await second.call("session.send", { sessionId: id, prompt: "[[say two]]" });
  await second.event(id, "session.idle");
  assert.deepEqual(told(id), ["[[say one]]", "[[say two]]"]);
});

scenario("a history of several MB is the one that its CLI has, whole", async (kit) => {
  const client = await kit.raw();
  const id = newId("large");
  const text = "0123456789abcdef ".repeat(80_000);
  await client.call("session.create", params(id));
  for (const word of ["one", "two"]) {
    await client.call("session.send", {
      sessionId: id, prompt: `[[say ${word}]] ${text}`, wait: true,
    });
  }
  const [owner] = await owners(id);
  const direct = await kit.raw(pool.clis.find(({ name }) => name === owner).port);
  const [ours, theirs] = await Promise.all([client, direct].map((side) =>
    within("history", 30_000, side.call("session.getMessages", { sessionId: id }))));
  assert.ok(JSON.stringify(ours).length > 2_500_000, `${JSON.stringify(ours).length}`);
  assert.deepEqual(ours, theirs);
  // What comes behind it is read from where it ends.
  assert.equal((await client.call("ping", { message: "m" })).message, "pong: m");
  await client.call("session.send", { sessionId: id, prompt: "[[say three]]", wait: true });
});

scenario("destroy, detach and close answer as the CLI does", async (kit) => {
  const client = await kit.raw();
  const id = newId("leave");
  const leave = (method) => client.call(method, { sessionId: id });
  await client.call("session.create", params(id));
  await client.call("session.send", { sessionId: id, prompt: "x", wait: true });
  assert.deepEqual(await leave("session.destroy"), { success: true });
  assert.deepEqual(await owners(id), []);
  assert.equal((await leave("session.destroy")).success, false);
  assert.equal((await leave("session.detach")).success, true);
  await client.call("session.resume", params(id));
  assert.deepEqual(await leave("session.detach"), { success: true });
  assert.deepEqual(await owners(id), []);
  await client.call("session.resume", params(id));
  assert.deepEqual(await leave("sessions.close"), {});
  assert.deepEqual(await owners(id), []);
  await assert.rejects(leave("session.abort"), /Session not found/);
});

scenario("eight pings and eight sends in one write: each answered once", async (kit) => {
  const client = await kit.raw();
  const ids = [newId("order-a"), newId("order-b")];
  for (const sessionId of ids) await client.call("session.create", params(sessionId));
  const pings = Array.from({ length: 8 }, (_, i) => client.prepare("ping", { message: `p${i}` }));
  const prompt = (i) => `[[len 2]] number ${i}`;
  const sends = Array.from({ length: 8 }, (_, i) =>
    client.prepare("session.send", { sessionId: ids[i % 2], prompt: prompt(i) }, `send-${i}`));
  client.write(...pings.flatMap((ping, i) => [ping.message, sends[i].message]));

  const pongs = await within("pongs", 5_000, Promise.all(pings.map((ping) => ping.answer)));
  assert.deepEqual(pongs.map((pong) => pong.message), pings.map((_, i) => `pong: p${i}`));
  const accepted = await within("answers", 10_000, Promise.all(sends.map((send) => send.answer)));
  assert.equal(new Set(accepted.map((answer) => answer.messageId)).size, 8);
  for (const [which, sessionId] of ids.entries()) {
    const prompts = () => client.events(sessionId)
      .filter((event) => event.type === "user.message")
      .map((event) => event.data.content);
    await client.until(`all prompts of ${sessionId}`, () => prompts().length === 4);
    await client.until("idle", () => {
      const types = client.events(sessionId).map((event) => event.type);
      return types.lastIndexOf("session.idle") > types.lastIndexOf("user.message");
    });
    const written = [0, 2, 4, 6].map((i) => prompt(i + which));
    if (mode === "taxiway") {
      assert.deepEqual(prompts(), written);
      assert.deepEqual(told(sessionId), written);
    } else {
      // The CLI alone promises that none is lost, not their order.
      assert.deepEqual(prompts().sort(), written);
      assert.deepEqual(told(sessionId).sort(), written);
    }
  }
  assert.deepEqual(client.stray, []);
});

scenario("steering during a wait:true send reaches the running turn", async (kit) => {
  const client = await kit.raw();
  const id = newId("steer");
  await client.call("session.create", params(id, { tools: [rawTool("compass")] }));
  const waiting = client.call("session.send", {
    sessionId: id, prompt: "go [[tool compass {}]] [[say arrived]]", wait: true,
  });
  let answered = false;
  waiting.then(() => (answered = true), () => (answered = true));
  const requested = await client.event(id, "external_tool.requested");
  const from = performance.now();
  await client.call("session.send", {
    sessionId: id, prompt: "turn left [[steer]]", mode: "immediate",
  });
  assert.ok(performance.now() - from < 1_000, "the steering send waited for the turn");
  assert.equal(answered, false);
  await client.call("session.tools.handlePendingToolCall", {
    sessionId: id, requestId: requested.data.requestId, result: "north",
  });
  await within("the answer of the wait:true send", 20_000, waiting);
  const types = client.events(id).map((event) => event.type);
  assert.equal(types.filter((type) => type === "session.idle").length, 1);

  const rounds = pool.model.requests(id);
  assert.equal(rounds.length, 2, "steering made a turn of its own");
  const users = rounds[1].messages.filter((m) => m.role === "user").map((m) => m.text);
  assert.ok(users.some((text) => /turn left/.test(text)), `the model heard only ${users}`);
});

scenario("sends after a wait:true send are taken in order", async (kit) => {
  const client = await kit.raw();
  const id = newId("queue");
  await client.call("session.create", params(id));
  const first = client.prepare("session.send", {
    sessionId: id, prompt: `one [[hold ${id}]]`, wait: true,
  });
  const rest = ["two", "three", "four"].map((prompt) =>
    client.prepare("session.send", { sessionId: id, prompt }));
  client.write(first.message, ...rest.map((send) => send.message));
  await pool.model.held(id);
  await within("answers of the queued sends", 5_000, Promise.all(rest.map((send) => send.answer)));
  pool.model.release(id);
  await within("the wait:true send", 20_000, first.answer);
  await client.until("the queue to end", () => told(id).length === 4);
  const heard = told(id).map((prompt) => prompt.split(" ")[0]);
  if (mode === "taxiway") assert.deepEqual(heard, ["one", "two", "three", "four"]);
  else assert.deepEqual(heard.sort(), ["four", "one", "three", "two"]);
});

scenario("ids: any the CLI takes come back as they were; its own never clash", async (kit) => {
  const client = await kit.raw();
  const requests = [];
  client.onRequest = (method) => {
    assert.equal(method, "hooks.invoke");
    return {};
  };
  const callIds = [0, -7, 2 ** 52, "0", "", "x".repeat(300), "\u00e9\ud83d\ude00\"\\"];
  const pings = callIds.map((id) => client.prepare("ping", { message: String(id) }, id));
  client.write(...pings.map((ping) => ping.message));
  await within("pongs", 5_000, Promise.all(pings.map((ping) => ping.answer)));

  const ids = Array.from({ length: 6 }, (_, i) => newId(`hook-${i}`));
  for (const id of ids) await client.call("session.create", params(id, { hooks: true }));
  await Promise.all(ids.map((id) => client.call("session.send", { sessionId: id, prompt: "x" })));
  for (const id of ids) await client.event(id, "session.idle");
  for (const message of client.seen) {
    if (message.method === "hooks.invoke") requests.push(message.id);
  }
  assert.ok(requests.length >= 6 * 3, `${requests.length} hook calls`);
  for (const id of requests) assert.ok(Number.isInteger(id) && id > 0, `request id ${id}`);
  assert.equal(new Set(requests).size, requests.length, "request ids repeat on one connection");
  assert.deepEqual(client.stray, []);
});

scenario("notifications arrive whole and in the CLI's order", async (kit) => {
  const id = newId("same");
  const client = await kit.raw();
  await client.call("session.create", params(id, { tools: [rawTool("compass")] }));
  const [owner] = await owners(id);
  const witness = await kit.raw(pool.clis.find((cli) => cli.name === owner).port);
  await witness.call("session.resume", params(id));
  const start = client.events(id).length;
  const before = witness.events(id).length;
  await client.call("session.send", { sessionId: id, prompt: "[[tool compass {}]] [[len 300]]" });
  const requested = await client.event(id, "external_tool.requested");
  await client.call("session.tools.handlePendingToolCall", {
    sessionId: id, requestId: requested.data.requestId, result: "é😀\u0000 \\ud83d </end>\r\n",
  });
  for (const side of [client, witness]) await side.event(id, "session.idle");
  sameTurn(client.events(id).slice(start), witness.events(id).slice(before));
});

scenario("lists hold each session once, newest first", async (kit) => {
  const client = await kit.raw();
  const ids = Array.from({ length: 6 }, (_, i) => newId(`list-${i}`));
  for (const sessionId of ids) {
    await client.call("session.create", params(sessionId));
    await client.call("session.send", { sessionId, prompt: `about ${sessionId}`, wait: true });
  }
  for (const method of ["session.list", "sessions.list"]) {
    const { sessions } = await client.call(method, {});
    const listed = sessions.map((session) => session.sessionId);
    assert.equal(new Set(listed).size, listed.length, `${method} repeats`);
    for (const id of ids) assert.ok(listed.includes(id), `${method} lacks ${id}`);
    const times = sessions.map((session) => session.modifiedTime);
    assert.deepEqual(times, [...times].sort().reverse(), `${method} is not newest first`);
  }
  const { sizes } = await client.call("sessions.getSizes", {});
  for (const id of ids) assert.ok(sizes[id] > 0, `no size of ${id}`);
  assert.equal((await client.call("session.getLastId", {})).sessionId, ids.at(-1));
  const metadata = await client.call("sessions.getClientMetadata", { sessionIds: ids });
  assert.deepEqual(metadata.map((entry) => entry.sessionId), ids);
});

scenario("a fork lives and answers like any session", async (kit) => {
  const client = await kit.raw();
  const id = newId("fork");
  await client.call("session.create", params(id));
  await client.call("session.send", { sessionId: id, prompt: "before", wait: true });
  const { sessionId: copy } = await client.call("sessions.fork", { sessionId: id });
  assert.notEqual(copy, id);
  await client.call("session.resume", params(copy));
  await client.call("session.send", { sessionId: copy, prompt: "after", wait: true });
  assert.deepEqual(told(copy).map((text) => text.split(" ")[0]), ["before", "after"]);
  assert.equal((await owners(copy)).length, 1);
});

if (mode === "taxiway") {
  scenario("create on a closed session with history reopens it", async ({ client: connect }) => {
    const client = await connect();
    const id = newId("again");
    const first = await client.createSession(config(id));
    await ask(first, "remember me");
    const [home] = await owners(id);
    await first.disconnect();
    await poll("closed", async () => (await owners(id)).length === 0, 5_000);

    const again = await client.createSession(config(id));
    const history = JSON.parse(await ask(again, "what now [[history]]"));
    assert.deepEqual(history.map(promptOf), ["remember me", "what now [[history]]"]);
    if (pool.routing === "sticky") assert.deepEqual(await owners(id), [home]);
    const starts = (await again.getEvents()).filter((event) => event.type === "session.start");
    assert.equal(starts.length, 1, "an empty history was started over the old one");
    await stopped(client);
  });

  scenario("a call id still pending is refused; the first call is answered", async (kit) => {
    const client = await kit.raw();
    const id = newId("twice");
    await client.call("session.create", params(id));
    const send = { sessionId: id, prompt: `x [[hold ${id}]]`, wait: true };
    const first = client.prepare("session.send", send, 77);
    client.write(first.message);
    await pool.model.held(id);
    const second = client.prepare("ping", { message: "x" }, 77);
    client.write(second.message);
    const refused = await second.answer.then(() => undefined, (error) => error);
    assert.ok(refused instanceof CallError);
    assert.equal(refused.code, -32600);
    pool.model.release(id);
    await client.until("the first call's answer", () => client.stray.length === 1);
    assert.equal(client.stray[0].id, 77);
    assert.ok(client.stray[0].result.messageId);
  });

  scenario("the pool cannot be shut down by a client", async (kit) => {
    const client = await kit.raw();
    await assert.rejects(client.call("runtime.shutdown", {}), { code: -32014 });
    assert.equal((await client.call("ping", { message: "x" })).message, "pong: x");
    for (const cli of pool.clis) assert.equal(cli.process.ended, undefined);
  });
}
