// Rolling restarts by drain, under streaming turns: no client sees an error and no turn is cut.
// With separate homes a server's sessions wait until it is back, and are answered then.
//
// Runs only through Taxiway.

import { command } from "../pool.mjs";
import {
  ask, assert, metric, newId, nextEvent, poll, routing, usePool, within,
} from "./suite.mjs";

const { pool, scenario, config, told, owners } = usePool({
  mode: "taxiway",
  config: { drain: { timeout: "30s" }, routing: { home_wait: "30s" } },
});

const SESSIONS = 9;
const up = (cli) => metric(pool.admin, `taxiway_backend_up{backend="${cli.name}"}`);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** Ends a drained server, starts it again and lets it take sessions. */
async function restart(cli) {
  await cli.process.stop();
  await cli.start();
  await command(pool, ["ready", cli.name]);
  await poll(`${cli.name} is up`, async () => (await up(cli)) === 1, 20_000);
}

scenario("all servers are restarted one after the other during streaming turns", async (kit) => {
  const clients = await Promise.all(Array.from({ length: 3 }, () => kit.client()));
  const sessions = await Promise.all(Array.from({ length: SESSIONS }, (_, i) =>
    clients[i % clients.length].createSession(config(newId(`rolling-${i}`)))));
  const seen = { errors: [], aborted: 0 };
  for (const session of sessions) {
    session.on(({ type, data }) => {
      if (type === "session.error") seen.errors.push(data.message);
      if (type === "abort" || (type === "session.idle" && data.aborted)) seen.aborted += 1;
    });
  }
  let over = false;
  const prompts = new Map(sessions.map(({ sessionId }) => [sessionId, []]));
  const turns = Promise.all(sessions.map(async (session, i) => {
    const mine = prompts.get(session.sessionId);
    // Turns end at different times: each is 0.4 s to 1.2 s of streaming.
    while (!over) {
      const text = `answer ${mine.length} of ${i} ${"and on ".repeat(10 + 2 * i)}`.trim();
      const prompt = `[[slow 20]] [[say ${text}]]`;
      mine.push(prompt);
      assert.equal(await ask(session, prompt, 50_000), text);
      await pause(30);
    }
  }));
  // A failed turn ends the scenario at once; it is reported where it is awaited.
  turns.catch(() => undefined);
  await poll("a turn of each", () => [...prompts.values()].every((p) => p.length > 1), 20_000);

  for (const cli of pool.clis) {
    const work = command(pool, ["drain", cli.name, "--wait", "40s"], 50_000);
    await Promise.race([work, turns.then(() => work)]);
    for (const { sessionId } of sessions) {
      assert.deepEqual(await owners(sessionId, [cli]), [], `${sessionId} is still on ${cli.name}`);
    }
    await restart(cli);
  }
  over = true;
  await within("the last turns", 50_000, turns);

  assert.deepEqual(seen, { errors: [], aborted: 0 });
  const counts = [...prompts.values()].map((mine) => mine.length);
  kit.t.diagnostic(`turns by session: ${counts}`);
  for (const { sessionId } of sessions) {
    assert.deepEqual(told(sessionId), prompts.get(sessionId));
    assert.equal((await owners(sessionId)).length, 1);
  }
}, 240_000);

scenario("a drain waits for the running turn; the session moves when it has ended", async (kit) => {
  const client = await kit.client();
  const session = await client.createSession(config(newId("busy")));
  const id = session.sessionId;
  await ask(session, "before");
  const [name] = await owners(id);
  const cli = pool.clis.find((one) => one.name === name);
  const answer = ask(session, `[[hold ${id}]] [[say whole]]`, 50_000);
  await pool.model.held(id);
  let drained = false;
  const work = command(pool, ["drain", cli.name, "--wait", "40s"], 50_000).then(() => {
    drained = true;
  });
  kit.later(() => command(pool, ["ready", cli.name]));
  await pause(1_500);
  assert.equal(drained, false, "drained in the middle of a turn");
  assert.deepEqual(await owners(id), [cli.name]);

  pool.model.release(id);
  assert.equal(await answer, "whole");
  await within("drained", 10_000, work);
  assert.deepEqual(await owners(id, [cli]), []);
  // Shared storage: answered elsewhere. Separate homes: answered when its own takes it again.
  const next = ask(session, "after [[say here]]", 30_000);
  if (routing === "sticky") {
    const early = await Promise.race([next.then(() => "answered"), pause(1_000)]);
    assert.equal(early, undefined, "answered while its home was drained");
    await command(pool, ["ready", cli.name]);
  }
  assert.equal(await next, "here");
  const now = await owners(id);
  assert.equal(now.length, 1);
  assert.equal(now[0] === cli.name, routing === "sticky");
  assert.deepEqual(told(id), ["before", `[[hold ${id}]] [[say whole]]`, "after [[say here]]"]);
});

scenario("a turn that nobody is left to answer does not hold a drain up", async (kit) => {
  const leaving = await kit.raw();
  const staying = await kit.client();
  const id = newId("orphan");
  const { provider, model, streaming } = config(id);
  const tool = { name: "orphan_tool", description: "x", parameters: { type: "object" } };
  await leaving.call("session.create", {
    sessionId: id, provider, model, streaming, requestPermission: false,
    tools: [{ ...tool, skipPermission: true }],
  });
  const session = await staying.resumeSession(id, config(id));
  const idle = nextEvent(session, "session.idle", 40_000);
  const requested = nextEvent(session, "external_tool.requested");
  await session.send({ prompt: "[[tool orphan_tool {}]]" });
  await requested;
  await leaving.call("session.detach", { sessionId: id });
  const [name] = await owners(id);
  kit.later(() => command(pool, ["ready", name]));
  await command(pool, ["drain", name, "--wait", "20s"], 30_000);
  assert.equal((await idle).data.aborted, true);
});
