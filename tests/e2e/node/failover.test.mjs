// What a client keeps when the server that owns its sessions dies or hangs, with shared storage:
// its connection, its sessions, and everything that was acknowledged. What is lost is told.
//
// Runs only through Taxiway. Bounds are the promise plus SLACK_MS for five processes on two cores.

import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { command, eventsOnDisk } from "../pool.mjs";
import {
  ask, assert, CallError, metric, newId, poll, promptOf, RawClient, startPool, usePool, within,
} from "./suite.mjs";

const SLACK_MS = 500;
const HANG_MS = 2_000;
const settings = { failover: { hang_timeout: `${HANG_MS}ms` } };
const { pool, scenario, config, params, told, owners } = usePool({
  mode: "taxiway", routing: "shared-storage", config: settings,
});

const live = () => pool.clis.filter((cli) => !cli.process.ended && !cli.paused);
const up = (cli) => metric(pool.admin, `taxiway_backend_up{backend="${cli.name}"}`);
const isUp = (cli) => poll(`${cli.name} is up`, async () => (await up(cli)) === 1, 20_000);
const ownerOf = async (id) => {
  const names = await owners(id, live());
  assert.equal(names.length, 1, `${id} is open on [${names}]`);
  return pool.clis.find((cli) => cli.name === names[0]);
};
/** Kills a server. `heal` starts it again, at the latest when the scenario ends. */
async function kill(kit, cli) {
  let healing;
  const heal = () => {
    healing ??= cli.process.exited.then(() => cli.start()).then(() => isUp(cli));
    return healing;
  };
  kit.later(heal);
  await cli.kill();
  return { cli, heal };
}
const killOwner = async (kit, id) => kill(kit, await ownerOf(id));
/** The next turn of a raw client's session, to its end. */
async function turn(client, sessionId, prompt) {
  const from = client.seen.length;
  await within("the send's answer", 10_000, client.call("session.send", { sessionId, prompt }));
  return client.event(sessionId, "session.idle", from);
}
const rawTool = (name) => ({
  name, description: name, parameters: { type: "object" }, skipPermission: true,
});
/** What the model was told in the last request: `role: text`. */
const lastTold = (id) => pool.model.requests(id).at(-1).messages
  .map(({ role, text }) => `${role}: ${promptOf(text)}`);

scenario("kill -9: an idle session answers its next call within a second", async (kit) => {
  const client = await kit.client();
  const session = await client.createSession(config(newId("idle")));
  await ask(session, "before");
  const from = performance.now();
  await killOwner(kit, session.sessionId);
  assert.equal(await within("mode.get", 10_000, session.rpc.mode.get()), "interactive");
  const took = performance.now() - from;
  kit.t.diagnostic(`answered ${took.toFixed(0)} ms after the kill`);
  assert.ok(took <= 1_000 + SLACK_MS, `answered after ${took.toFixed(0)} ms`);
  await ask(session, "after");
  assert.deepEqual(told(session.sessionId), ["before", "after"]);
  await ownerOf(session.sessionId);
});

scenario("kill -9: the turn that was acknowledged last is there", async (kit) => {
  const client = await kit.raw();
  const id = newId("last");
  await client.call("session.create", params(id));
  await turn(client, id, "first [[say one]]");
  const { heal } = await killOwner(kit, id);
  await turn(client, id, "second [[say two]]");
  await heal();
  await killOwner(kit, id);
  await turn(client, id, "third");
  assert.deepEqual(lastTold(id), ["user: first [[say one]]", "assistant: one",
    "user: second [[say two]]", "assistant: two", "user: third"]);
});

scenario("kill -9: 40 sessions answer within five seconds", async (kit) => {
  const [victim, ...others] = pool.clis;
  // All on one server: the others take no placements meanwhile.
  for (const cli of others) {
    await command(pool, ["drain", cli.name]);
    kit.later(() => command(pool, ["reset", cli.name]));
  }
  const client = await kit.raw();
  const ids = Array.from({ length: 40 }, (_, i) => newId(`hundred-${i}`));
  // One after the other: a server that opens many at a time does not answer pings for seconds.
  for (const id of ids) {
    await client.call("session.create", params(id));
    await turn(client, id, "before");
  }
  assert.equal((await owners(ids[0], [victim])).length, 1);
  for (const cli of others) await command(pool, ["reset", cli.name]);

  const from = performance.now();
  await killOwner(kit, ids[0]);
  const took = await Promise.all(ids.map(async (sessionId) => {
    const answer = client.call("session.mode.get", { sessionId });
    await within(`mode.get of ${sessionId}`, 30_000, answer);
    return performance.now() - from;
  }));
  const last = Math.max(...took);
  kit.t.diagnostic(`first ${Math.min(...took).toFixed(0)} ms, last ${last.toFixed(0)} ms`);
  assert.ok(last <= 5_000 + SLACK_MS, `the last was answered after ${last.toFixed(0)} ms`);
  for (const id of [ids[0], ids[20], ids[39]]) {
    await turn(client, id, "after");
    assert.deepEqual(told(id), ["before", "after"]);
  }
}, 180_000);

scenario("kill -9 with a tool and a permission pending: answers afterwards end the turn",
  async (kit) => {
    const client = await kit.raw();
    const cases = [
      {
        id: newId("tool"), extra: { tools: [rawTool("probe")] },
        prompt: "[[tool probe {}]] [[results]]", type: "external_tool.requested",
        method: "session.tools.handlePendingToolCall", answer: { result: "late result" },
        result: /late result/,
      },
      {
        id: newId("permission"), extra: { requestPermission: true },
        prompt: '[[tool bash {"command":"echo shell-ran","description":"x"}]] [[results]]',
        type: "permission.requested",
        method: "session.permissions.handlePendingPermissionRequest",
        answer: { result: { kind: "approve-once" } }, result: /shell-ran/,
      },
    ];
    for (const { id, extra, prompt, type, method, answer, result } of cases) {
      await client.call("session.create", params(id, extra));
      await turn(client, id, "before");
      const from = client.seen.length;
      await client.call("session.send", { sessionId: id, prompt });
      const { data } = await client.event(id, type, from);
      // At once: what the client has seen of the turn is kept.
      const { heal } = await killOwner(kit, id);
      const { requestId } = data;
      const taken = await within(method, 10_000,
        client.call(method, { sessionId: id, requestId, ...answer }));
      assert.deepEqual(taken, { success: true }, type);
      const idle = await client.event(id, "session.idle", from);
      assert.notEqual(idle.data.aborted, true, type);
      const events = client.events(id);
      assert.ok(!events.some((event) => event.type === "session.error"), type);
      assert.equal(events.filter((event) => event.type === type).length, 1, `${type} once`);
      assert.match(lastTold(id).at(-1), result);
      assert.deepEqual(told(id), ["before", prompt]);
      await heal();
    }
  });

scenario("kill -9 just after a tool's answer was acknowledged: the answer is kept or told lost",
  async (kit) => {
    const client = await kit.raw();
    for (const wait of [0, 50, 200]) {
      const id = newId(`answered-${wait}`);
      await client.call("session.create", params(id, { tools: [rawTool("probe")] }));
      await turn(client, id, "before");
      const from = client.seen.length;
      const prompt = `[[tool probe {}]] [[hold ${id}]] [[say done]]`;
      await client.call("session.send", { sessionId: id, prompt });
      const { data } = await client.event(id, "external_tool.requested", from);
      const answer = { sessionId: id, requestId: data.requestId, result: "the answer" };
      const taken = await client.call("session.tools.handlePendingToolCall", answer);
      assert.deepEqual(taken, { success: true });
      await new Promise((done) => setTimeout(done, wait));
      const { heal } = await killOwner(kit, id);
      pool.model.release(id);
      const idle = await client.event(id, "session.idle", from);
      const error = client.events(id).find((event) => event.type === "session.error");
      assert.equal(idle.data.aborted === true, error !== undefined, `after ${wait} ms`);
      await turn(client, id, "next");
      const tools = lastTold(id).filter((line) => line.startsWith("tool: "));
      assert.equal(tools.length, 1, `after ${wait} ms: ${lastTold(id)}`);
      assert.match(tools[0], /the answer/, `after ${wait} ms`);
      await heal();
    }
  });

scenario("kill -9 in a running turn: told at once, and the session goes on", async (kit) => {
  const client = await kit.client();
  const session = await client.createSession(config(newId("lost")));
  const id = session.sessionId;
  await ask(session, "before");
  const types = [];
  session.on(({ type, data }) => types.push(data.aborted ? `${type} aborted` : type));
  const asked = ask(session, `lost [[len 5]] [[hold ${id}]]`).then(
    () => assert.fail("the lost turn ended well"), (error) => error);
  await pool.model.held(id);
  const from = performance.now();
  await killOwner(kit, id);
  const error = await within("the lost turn's end", 5_000, asked);
  const took = performance.now() - from;
  assert.ok(took <= 1_000 + SLACK_MS, `told after ${took.toFixed(0)} ms`);
  assert.ok(!/Timeout/.test(error.message), error.message);
  await poll("idle", () => types.includes("session.idle aborted"), 2_000);
  assert.ok(types.indexOf("session.error") < types.indexOf("session.idle aborted"), `${types}`);
  assert.equal(types.filter((type) => type.startsWith("session.idle")).length, 1, `${types}`);

  pool.model.release(id);
  assert.equal(await ask(session, "after [[say still here]]"), "still here");
  const prompts = told(id);
  assert.equal(prompts[0], "before");
  assert.equal(prompts.at(-1), "after [[say still here]]");
});

scenario("mode, model, options, approvals and interests are kept", async (kit) => {
  const client = await kit.raw();
  const id = newId("kept");
  const call = (method, extra = {}) => within(method, 10_000,
    client.call(`session.${method}`, { sessionId: id, ...extra }));
  await client.call("session.create", params(id, { requestPermission: true }));
  await turn(client, id, "before");
  await call("model.switchTo", { modelId: "scripted-2" });
  await call("options.update", { excludedTools: ["view"] });
  await call("permissions.setApproveAll", { enabled: true });
  const { handle } = await call("eventLog.registerInterest", { eventType: "mcp.oauth_required" });
  await call("name.set", { name: "A kept name" });
  await call("mode.set", { mode: "plan" });
  // At once: what was acknowledged is kept.
  await killOwner(kit, id);

  assert.equal(await call("mode.get"), "plan");
  assert.equal((await call("model.getCurrent")).modelId, "scripted-2");
  assert.equal((await call("name.get")).name, "A kept name");
  await call("mode.set", { mode: "interactive" });
  const from = client.seen.length;
  await turn(client, id, '[[tool bash {"command":"echo approved","description":"x"}]] [[results]]');
  const request = pool.model.requests(id).at(-1);
  assert.equal(request.model, "scripted-2");
  assert.ok(request.tools.includes("bash") && !request.tools.includes("view"), `${request.tools}`);
  assert.match(lastTold(id).at(-1), /approved/);
  const asked = client.seen.slice(from)
    .filter((m) => m.params?.event?.type === "permission.requested");
  assert.deepEqual(asked, [], "the approval was lost");
  assert.deepEqual(await call("eventLog.releaseInterest", { handle }), { success: true });
});

scenario("two clients with different tools on one session both come along", async (kit) => {
  const alice = await kit.raw();
  const bob = await kit.raw();
  const id = newId("two");
  await alice.call("session.create", params(id, { tools: [rawTool("alpha")] }));
  await bob.call("session.resume", params(id, { tools: [rawTool("beta")] }));
  await turn(alice, id, "before");
  const prompt = "[[ptool alpha {}]] [[ptool beta {}]] [[results]]";
  const from = { alice: alice.seen.length, bob: bob.seen.length };
  await alice.call("session.send", { sessionId: id, prompt });
  const pending = await alice.until("both tools", () => {
    const events = alice.events(id).filter(({ type }) => type === "external_tool.requested");
    return events.length === 2 && new Map(events.map(({ data }) => [data.toolName, data]));
  });
  // Long enough for them to be on disk.
  await new Promise((done) => setTimeout(done, 500));
  await killOwner(kit, id);
  const answers = await within("both answers", 15_000, Promise.all(
    [[alice, "alpha"], [bob, "beta"]].map(([client, name]) =>
      client.call("session.tools.handlePendingToolCall", {
        sessionId: id, requestId: pending.get(name).requestId, result: `${name} after`,
      }))));
  assert.deepEqual(answers, [{ success: true }, { success: true }]);
  await alice.event(id, "session.idle", from.alice);
  await bob.event(id, "session.idle", from.bob);
  const results = lastTold(id).filter((line) => line.startsWith("tool: ")).join();
  assert.match(results, /alpha after/);
  assert.match(results, /beta after/);
  await turn(bob, id, "after");
  // The second client may see one idle more than there were turns, so the model is asked.
  await poll("the prompt after", () => told(id).at(-1) === "after", 10_000);
  const { tools } = pool.model.requests(id).at(-1);
  assert.ok(tools.includes("alpha") && tools.includes("beta"), `${tools}`);
  assert.deepEqual(told(id), ["before", prompt, "after"]);
});

scenario("a session without a turn is created again; a deleted one never", async (kit) => {
  const client = await kit.raw();
  const fresh = newId("fresh");
  await client.call("session.create", params(fresh));
  const { cli, heal } = await killOwner(kit, fresh);
  await turn(client, fresh, "first");
  assert.deepEqual(told(fresh), ["first"]);
  assert.notEqual((await ownerOf(fresh)).name, cli.name);
  await heal();

  const gone = newId("gone");
  await client.call("session.create", params(gone));
  await turn(client, gone, "before");
  const owner = await ownerOf(gone);
  assert.equal((await client.call("session.delete", { sessionId: gone })).success, true);
  await kill(kit, owner);
  const beside = newId("beside");
  await client.call("session.create", params(beside));
  await turn(client, beside, "alive");
  const not = (error) => error instanceof CallError && /not found/i.test(error.text);
  await assert.rejects(within("send", 10_000,
    client.call("session.send", { sessionId: gone, prompt: "x" })), not);
  await assert.rejects(within("resume", 10_000, client.call("session.resume", params(gone))), not);
  assert.deepEqual(await owners(gone, live()), []);
  assert.equal(existsSync(join(pool.clis[0].home, "copilot/session-state", gone)), false);
});

const failovers = async (admin, result) =>
  (await metric(admin, `taxiway_failovers_total{result="${result}"}`)) ?? 0;

scenario("SIGSTOP in a turn: taken over after hang_timeout, cleaned before it is used again",
  async (kit) => {
    const client = await kit.raw();
    const id = newId("stopped");
    await client.call("session.create", params(id));
    await turn(client, id, "before");
    const prompt = `[[hold ${id}]] [[len 5]] stopped`;
    const from = client.seen.length;
    await client.call("session.send", { sessionId: id, prompt });
    await pool.model.held(id);
    const cli = await ownerOf(id);
    const unfenced = await failovers(pool.admin, "unfenced");
    const side = await RawClient.connect(cli.port);
    kit.later(() => side.destroy());
    kit.later(() => cli.wake());

    const at = performance.now();
    cli.pause();
    const idle = await client.event(id, "session.idle", from, HANG_MS + 10_000);
    const took = performance.now() - at;
    assert.equal(idle.data.aborted, true);
    assert.ok(took >= HANG_MS - 100, `given up after ${took.toFixed(0)} ms already`);
    assert.ok(took <= HANG_MS + 3_000, `given up only after ${took.toFixed(0)} ms`);
    assert.ok(client.events(id).some(({ type }) => type === "session.error"));
    await turn(client, id, "elsewhere");
    assert.notEqual((await ownerOf(id)).name, cli.name);
    await poll("counted", async () => (await failovers(pool.admin, "unfenced")) > unfenced, 5_000);

    // Its model answers now: what a woken server would go on with.
    pool.model.release(id);
    cli.wake();
    await isUp(cli);
    await assert.rejects(side.call("session.mode.get", { sessionId: id }), /Session not found/);
    await ownerOf(id);
    await turn(client, id, "after");
    assert.deepEqual(told(id).filter((text) => !/stopped/.test(text)),
      ["before", "elsewhere", "after"]);
    const onDisk = eventsOnDisk(cli, id).filter(({ type }) => type === "user.message")
      .map(({ data }) => data.content);
    assert.equal(new Set(onDisk).size, onDisk.length, `${onDisk}`);
  });

scenario("a stop shorter than hang_timeout moves nothing", async (kit) => {
  const client = await kit.raw();
  const id = newId("short");
  await client.call("session.create", params(id));
  const prompt = `[[hold ${id}]] [[say in one piece]]`;
  const from = client.seen.length;
  await client.call("session.send", { sessionId: id, prompt });
  await pool.model.held(id);
  const cli = await ownerOf(id);
  kit.later(() => cli.wake());
  cli.pause();
  await new Promise((done) => setTimeout(done, HANG_MS / 2));
  cli.wake();
  pool.model.release(id);
  const idle = await client.event(id, "session.idle", from);
  assert.notEqual(idle.data.aborted, true);
  assert.equal((await ownerOf(id)).name, cli.name);
});

scenario("with a fence command the hung server is ended before its sessions move", async (kit) => {
  const script = (root) => {
    const file = join(root, "fence");
    writeFileSync(file, `#!/bin/sh\nexec kill -9 "$(cat '${root}'/"$1".pid)"\n`, { mode: 0o755 });
    return file;
  };
  const fenced = await startPool({
    mode: "taxiway", routing: "shared-storage", servers: 2,
    config: (root) => {
      const fence = { fence_command: [script(root), "{name}"], fence_timeout: "5s" };
      // Two servers start beside the pool's three, and one was seen to be starved for four seconds in its
      // first turn: it must not be given up for hung.
      return { failover: { hang_timeout: `${4 * HANG_MS}ms`, ...fence } };
    },
  });
  kit.later(() => fenced.stop());
  const client = await kit.raw(fenced.address);
  const id = newId("fenced");
  const provider = { type: "openai", baseUrl: fenced.model.baseUrl, apiKey: id };
  await client.call("session.create", params(id, { provider }));
  await turn(client, id, "before");
  const names = await owners(id, fenced.clis);
  const cli = fenced.clis.find(({ name }) => name === names[0]);
  cli.pause();
  // A send that is with the server when it hangs may have been executed; a question is repeated.
  await within("mode.get", 30_000, client.call("session.mode.get", { sessionId: id }));
  await turn(client, id, "after");
  await within("the hung server's end", 5_000, cli.process.exited);
  assert.equal(cli.process.ended.signal, "SIGKILL");
  assert.ok((await failovers(fenced.admin, "fenced")) >= 1);
  assert.equal(await failovers(fenced.admin, "unfenced"), 0);
  const prompts = fenced.model.requests(id).at(-1).messages
    .filter(({ role }) => role === "user").map(({ text }) => promptOf(text));
  assert.deepEqual(prompts, ["before", "after"]);
});
