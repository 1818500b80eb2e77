// What Taxiway promises when a CLI or Taxiway itself goes away: kill -9, SIGSTOP, drain, reload,
// SIGTERM. Only for Taxiway: one CLI alone has no such promises.
//
// Every bound is the promise plus SLACK_MS for the scheduling of five processes on two cores.

import { renameSync, writeFileSync } from "node:fs";
import { configuration, metric, status } from "../pool.mjs";
import {
  ask, assert, CallError, newId, nextEvent, poll, RawClient, usePool, within,
} from "./suite.mjs";

const { pool, scenario, config, params, told, owners } = usePool({ mode: "taxiway" });

const SLACK_MS = 150;

const live = () => pool.clis.filter((cli) => !cli.process.ended);
const up = (cli) => metric(pool.admin, `taxiway_backend_up{backend="${cli.name}"}`);

/** Creates sessions until every CLI has `each`; gives their ids by CLI name. */
async function spread(client, each, word) {
  const byCli = new Map(pool.clis.map((cli) => [cli.name, []]));
  for (let i = 0; i < 40; i += 1) {
    if ([...byCli.values()].every((ids) => ids.length >= each)) return byCli;
    const id = newId(`${word}-${i}`);
    await client.call("session.create", params(id));
    const [owner] = await owners(id);
    byCli.get(owner).push(id);
  }
  throw new Error(`40 sessions are not spread: ${[...byCli].map(([n, ids]) => [n, ids.length])}`);
}

/** Creates sessions until one is placed on `cli`. */
async function placedOn(client, cli, word) {
  for (let i = 0; i < 40; i += 1) {
    const id = newId(`${word}-${i}`);
    await client.call("session.create", params(id));
    if ((await owners(id, [cli])).length === 1) return id;
  }
  throw new Error(`none of 40 sessions was placed on ${cli.name}`);
}

async function turn(client, sessionId, prompt) {
  const from = client.seen.length;
  await client.call("session.send", { sessionId, prompt });
  await client.event(sessionId, "session.idle", from);
}

scenario("kill -9 of one CLI: its calls say so at once, the rest never notice", async (kit) => {
  const client = await kit.raw();
  const byCli = await spread(client, 2, "kill");
  const victim = pool.clis[1];
  const ids = [...byCli.values()].flat();
  for (const id of ids) await turn(client, id, "before");

  const hold = newId("hold");
  const sends = ids.map((id) => ({
    id,
    lost: byCli.get(victim.name).includes(id),
    answer: client.call("session.send", { sessionId: id, prompt: `x [[hold ${hold}]]`, wait: true })
      .then((result) => ({ result }), (error) => ({ error })),
  }));
  await within("all turns running", 20_000, pool.model.held(hold, ids.length));

  const killed = performance.now();
  victim.process.kill("SIGKILL");
  for (const { answer } of sends.filter((send) => send.lost)) {
    const { error } = await within("the lost call's answer", 5_000, answer);
    assert.ok(error instanceof CallError, `${error}`);
    assert.equal(error.code, -32011);
    assert.equal(error.data?.source, "taxiway");
    assert.equal(error.data?.code, "BACKEND_LOST");
    assert.equal(error.data?.retryable, false);
    const took = error.at - killed;
    assert.ok(took <= 100 + SLACK_MS, `-32011 came ${took.toFixed(0)} ms after the kill`);
  }

  for (let i = 0; i < 6; i += 1) {
    const id = newId(`elsewhere-${i}`);
    await within("create after the kill", 5_000, client.call("session.create", params(id)));
    await turn(client, id, "new here");
    assert.equal((await owners(id, live())).length, 1);
  }
  pool.model.release(hold);
  for (const { id, answer } of sends.filter((send) => !send.lost)) {
    const { result, error } = await within("a surviving call", 10_000, answer);
    assert.ok(result?.messageId, `${id}: ${error}`);
    assert.ok(!client.events(id).some((event) => event.type === "session.error"));
  }
  assert.equal(client.closedAt, undefined, "the client's connection was closed");
  await poll("backend_up 0", async () => (await up(victim)) === 0, 3_000);

  await victim.process.exited;
  await victim.start();
  await poll("backend_up 1", async () => (await up(victim)) === 1, 10_000);
  const again = await placedOn(client, victim, "back");
  await turn(client, again, "on the restarted one");
  const [old] = byCli.get(victim.name);
  await within("resume", 10_000, client.call("session.resume", params(old)));
  await turn(client, old, "after");
  assert.equal(told(old)[0], "before");
  assert.equal(told(old).at(-1), "after");
});

scenario("a stopped CLI is out of placement in time, and back when it wakes", async (kit) => {
  const client = await kit.raw();
  const victim = pool.clis[2];
  const asleep = await placedOn(client, victim, "asleep");
  await turn(client, asleep, "before");
  // interval + timeout × unhealthy_after, of the pool's configuration.
  const bound = 500 + 500 * 2;
  kit.later(() => victim.process.kill("SIGCONT"));
  const stopped = performance.now();
  victim.process.kill("SIGSTOP");
  await poll("backend_up 0", async () => (await up(victim)) === 0, bound + SLACK_MS, 10);
  const took = performance.now() - stopped;
  kit.t.diagnostic(`out of placement after ${took.toFixed(0)} ms of ${bound}`);

  const others = pool.clis.filter((cli) => cli !== victim);
  for (let i = 0; i < 6; i += 1) {
    const id = newId(`awake-${i}`);
    await within("create beside a stopped CLI", 3_000, client.call("session.create", params(id)));
    assert.equal((await owners(id, others)).length, 1);
  }
  victim.process.kill("SIGCONT");
  await poll("backend_up 1", async () => (await up(victim)) === 1, 10_000);
  await turn(client, asleep, "after");
  assert.deepEqual(told(asleep), ["before", "after"]);
  await placedOn(client, victim, "awake-again");
});

/** What holds while `cli` takes no placements: its open sessions go on, new ones go elsewhere. */
async function keepsServing(client, cli, open) {
  await turn(client, open, "still served");
  for (let i = 0; i < 8; i += 1) {
    const id = newId(`beside-${i}`);
    await client.call("session.create", params(id));
    assert.deepEqual(await owners(id, [cli]), [], `${id} was placed on ${cli.name}`);
  }
}

scenario("a drained CLI takes no placements and keeps its sessions", async (kit) => {
  const client = await kit.raw();
  const cli = pool.clis[0];
  const open = await placedOn(client, cli, "drained");
  const order = async (verb) => {
    const response = await fetch(`${pool.admin}/api/v1/backends/${cli.name}/${verb}`, {
      method: "POST", headers: { "content-type": "application/json" }, body: "{}",
    });
    assert.ok(response.ok, `${verb}: ${response.status} ${await response.text()}`);
  };
  kit.later(() => order("ready"));
  await order("drain");
  await keepsServing(client, cli, open);
  await order("ready");
  await placedOn(client, cli, "ready");
});

scenario("reload: a CLI taken out of the file keeps its sessions; bad files change nothing",
  async (kit) => {
    const client = await kit.raw();
    const cli = pool.clis[0];
    const open = await placedOn(client, cli, "removed");
    const write = (text) => {
      writeFileSync(`${pool.taxiway.file}.new`, text);
      renameSync(`${pool.taxiway.file}.new`, pool.taxiway.file);
    };
    const file = (clis) => configuration({
      port: pool.taxiway.port,
      adminPort: Number(new URL(pool.admin).port),
      clis,
      routing: pool.routing,
    });
    const reloads = async (result) =>
      (await metric(pool.admin, `taxiway_config_reloads_total{result="${result}"}`)) ?? 0;
    const apply = async (text, result) => {
      const before = await reloads(result);
      write(text);
      await poll(`a reload with ${result}`, async () => (await reloads(result)) > before, 10_000);
    };
    kit.later(() => write(file(pool.clis)));

    await apply(file(pool.clis.slice(1)), "success");
    await keepsServing(client, cli, open);
    await apply("[listener]\nno_such_key = 1\n", "failure");
    await keepsServing(client, cli, open);
    await apply(file(pool.clis), "success");
    await placedOn(client, cli, "returned");
    assert.equal(client.closedAt, undefined);
  });

// Last: it ends the pool's Taxiway.
scenario("SIGTERM during a turn: not ready at once, the turn ends, exit code 0", async (kit) => {
  const client = await kit.client();
  const id = newId("term");
  const session = await client.createSession(config(id));
  await ask(session, "before");
  const idle = nextEvent(session, "session.idle");
  await session.send({ prompt: `[[hold ${id}]] [[say finished]]` });
  await pool.model.held(id);
  assert.equal(await status(`${pool.admin}/readyz`), 200);

  pool.taxiway.process.kill("SIGTERM");
  await poll("/readyz 503", async () => (await status(`${pool.admin}/readyz`)) === 503,
    SLACK_MS, 5);
  const late = await RawClient.open(pool.address);
  kit.later(() => late.destroy());
  assert.equal((await late.call("ping", { message: "late" })).message, "pong: late");
  assert.equal(pool.taxiway.process.ended, undefined, "it did not wait for the turn");

  pool.model.release(id);
  assert.notEqual((await idle).data.aborted, true);
  const ended = await within("exit", 10_000, pool.taxiway.process.exited);
  assert.deepEqual(ended, { code: 0, signal: null });
  for (const cli of pool.clis) assert.equal(cli.process.ended, undefined, `${cli.name} ended`);
});
