// Two users on one pool of real CLI servers: each has its own sessions and hears nothing of the
// other's, whatever it calls, and whoever is attacked does not notice.
//
// The same calls are first made on a bare CLI, where they work: else that they fail here would
// prove nothing. Runs through Taxiway only.

import { createHash, randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { join } from "node:path";
import { defineTool, RuntimeConnection } from "@github/copilot-sdk";
import { eventsOnDisk } from "../pool.mjs";
import { ATTACKS, attempt, naming } from "./attacks.mjs";
import { ask, assert, newId, poll, RawClient, usePool, within } from "./suite.mjs";

const TOKENS = { ann: "token-of-ann-0123456789", bob: "token-of-bob-0123456789",
  eve: "token-of-eve-0123456789" };
const principal = (name, more) => ({
  name, realm: "acme", token_sha256: createHash("sha256").update(TOKENS[name]).digest("hex"),
  ...more,
});
const identity = {
  principals: [
    principal("ann"),
    principal("bob"),
    // Whatever the profile says of methods of sessions: whose they are has to be enough.
    principal("eve", { allow: ["session.*", "sessions.*"] }),
  ],
};

const bare = usePool({ mode: "direct" });
const guarded = usePool({ mode: "taxiway", servers: 2, config: { identity } });

/** A way to `address` that keeps every byte that comes back over it. */
async function tap(kit, address) {
  const [host, port] = address.split(":");
  const chunks = [];
  const server = createServer((near) => {
    const far = createConnection({ host, port: Number(port), noDelay: true });
    near.setNoDelay(true);
    far.on("data", (chunk) => chunks.push(chunk));
    far.pipe(near);
    near.pipe(far);
    for (const [one, other] of [[near, far], [far, near]]) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  kit.later(() => server.close());
  return {
    address: `127.0.0.1:${server.address().port}`,
    bytes: () => Buffer.concat(chunks).toString("utf8"),
  };
}

/** A client of the SDK that is one of the users, by this way. */
const sdk = (kit, user, address) => kit.client(undefined, {
  connection: RuntimeConnection.forUri(address, { connectionToken: TOKENS[user] }),
});
const raw = async (kit, address, connect = {}) => {
  const client = await RawClient.connect(address, connect);
  kit.later(() => client.destroy());
  return client;
};

/** A promise that the test settles. */
function promised() {
  const made = {};
  made.promise = new Promise((resolve) => (made.settle = resolve));
  return made;
}

/**
 * A client with work under way: a turn that streams until it is released, a turn that waits for a
 * tool, a permission and an answer of its user, and a closed session.
 */
async function victimOf(kit, { pool, config, told }, client) {
  const desk = join(pool.root, `desk-${randomUUID()}`);
  mkdirSync(desk);
  const mark = `mark-${randomUUID()}`;
  const at = { workingDirectory: desk };
  const [id, asking, closed] = [randomUUID(), newId("asking"), newId("closed")];

  const rest = await client.createSession(config(closed, at));
  await ask(rest, `[[say ${mark}]]`);
  await rest.disconnect();

  // Two turns that nobody disturbs: the second shows what a turn sounds like.
  const session = await client.createSession(config(id, at));
  await ask(session, `${mark} [[say ${mark} is quiet]]`);
  const calm = [];
  const heard = [];
  let hear = calm;
  session.on((event) => hear.push(event));
  const stream = async (name) => {
    const turn = session.sendAndWait({ prompt: `[[flow ${name}]] [[slow 8]]` }, 50_000);
    turn.catch(() => undefined);
    await poll("the stream", () => hear.some((e) => e.type === "assistant.message_delta"), 10_000);
    const content = turn.then((message) => message?.data.content);
    content.catch(() => undefined);
    return { content };
  };
  const undisturbed = await stream(`${mark}-calm`);
  pool.model.release(`${mark}-calm`);
  await undisturbed.content;

  const answers = { tool: promised(), permission: promised(), question: promised() };
  const requests = {};
  const tool = (name, more, handler) => defineTool(name, {
    description: name, parameters: { type: "object", properties: {} }, ...more, handler,
  });
  const asker = await client.createSession(config(asking, {
    ...at,
    tools: [
      tool("free", { skipPermission: true }, () => answers.tool.promise),
      tool("idle", { skipPermission: true }, () => answers.tool.promise),
      tool("guarded", {}, () => "guarded ran"),
    ],
    onPermissionRequest: () => answers.permission.promise,
    onUserInputRequest: () => answers.question.promise,
  }));
  const kinds = { "external_tool.requested": "tool", "permission.requested": "permission",
    "user_input.requested": "question" };
  asker.on(({ type, data }) => {
    const kind = data.toolName === "idle" ? "second tool" : kinds[type];
    if (kinds[type]) requests[kind] ??= data.requestId;
  });
  const asked = asker.sendAndWait(
    { prompt: `[[ptool free {}]] [[ptool idle {}]] [[ptool guarded {}]] ${mark}`
      + ' [[ptool ask_user {"question":"Which?"}]] [[results]]' }, 50_000);
  asked.catch(() => undefined);
  await poll("all requests", () => Object.keys(requests).length === 4, 10_000);

  hear = heard;
  const running = await stream(mark);
  await poll("the stream to attack", () => heard.length > 20, 10_000);
  const before = new Map([id, asking, closed].map((name) => [name, diskOf(pool, name)]));

  return {
    client,
    target: {
      id, asking, closed, requests, desk, mark, thief: newId("thief"), never: newId("never"),
      baseUrl: pool.model.baseUrl, own: undefined,
    },
    mode: () => session.rpc.mode.get(),
    aborted: () => poll("the abort", () => heard.some((e) => e.type === "abort"), 10_000),
    /** Ends both turns, and holds what was heard and kept against what should have been. */
    unharmed: async () => {
      const from = heard.length;
      pool.model.release(mark);
      const content = await within("the stream's end", 20_000, running.content);
      const tokens = content.split(" ");
      tokens.forEach((token, n) => assert.equal(token, `${mark}-${n}`));
      assert.ok(from > 2 * 20 && tokens.length > 20, `only ${tokens.length} tokens`);
      const deltas = heard.filter((e) => e.type === "assistant.message_delta");
      assert.equal(deltas.map((e) => e.data.deltaContent).join(""), content);
      assert.equal(new Set(heard.map((e) => e.id)).size, heard.length, "an event came twice");
      await poll("the end", () => heard.some((e) => e.type === "session.idle"), 10_000);
      assert.deepEqual(counted(heard), counted(calm), "not the events of an undisturbed turn");

      answers.tool.settle("free ran");
      answers.permission.settle({ kind: "approve-once" });
      answers.question.settle({ answer: "her own", wasFreeform: true });
      const results = JSON.parse((await within("the results", 20_000, asked)).data.content);
      assert.deepEqual(results.map((r) => /free ran|guarded ran|her own/.exec(r)?.[0]),
        ["free ran", "free ran", "guarded ran", "her own"], `${results}`);

      // What has become history, and only that: nothing was added, whoever looks.
      const events = await session.getEvents();
      const turn = events.slice(events.findLastIndex((e) => e.type === "user.message"));
      const known = new Set(heard.map((e) => e.id));
      assert.ok(turn.length >= 4, `only ${turn.length} events`);
      for (const event of turn) assert.ok(known.has(event.id), `${event.type} was not heard`);
      assert.deepEqual(told(id).map((prompt) => prompt.includes(mark)), [true, true, true]);
      assert.equal(told(asking).length, 1);
      assert.equal(told(closed).length, 1);
      assert.deepEqual(pool.model.requests().filter((r) => r.model === "stolen"), []);
      for (const [name, old] of before) {
        const now = diskOf(pool, name);
        assert.deepEqual(now.slice(0, old.length), old, `${name} on disk`);
        const starts = now.filter((e) => /^session\.(start|resume|shutdown)$/.test(e.type));
        const [started, ...more] = starts.map((e) => e.type);
        assert.equal(started, "session.start");
        assert.deepEqual(more, name === closed ? ["session.shutdown"] : [], `${name} on disk`);
      }
      assert.equal(await session.rpc.mode.get(), "interactive");
      assert.equal(existsSync(join(desk, "stolen")), false, "a command ran");
      assert.equal(await ask(session, "[[say as ever]]"), "as ever");
      const again = await client.resumeSession(closed, config(closed, at));
      assert.equal(await ask(again, "[[say again]]"), "again");
      assert.equal(told(closed).length, 2);
    },
  };
}

/** How often each kind of event came, but for those that there is one of for each token. */
function counted(events) {
  const counts = {};
  for (const { type } of events) {
    if (!/delta$/.test(type)) counts[type] = (counts[type] ?? 0) + 1;
  }
  return counts;
}

/** The events of a session on whichever server's disk it is. */
const diskOf = (pool, id) =>
  pool.clis.map((cli) => eventsOnDisk(cli, id)).find((events) => events !== undefined) ?? [];

/** The bodies of all frames. */
function* frames(bytes) {
  const all = Buffer.from(bytes, "utf8");
  for (let at = 0; at < all.length;) {
    const head = all.indexOf("\r\n\r\n", at);
    if (head < 0) return;
    const end = head + 4 + Number(/\d+/.exec(all.subarray(at, head).toString())[0]);
    if (end > all.length) return;
    yield all.subarray(head + 4, end).toString("utf8");
    at = end;
  }
}

/** A target of which no server has anything, like another. */
const nothingLike = (target) => ({
  ...target,
  id: randomUUID(), asking: newId("asking"), closed: newId("closed"), never: newId("never"),
  requests: Object.fromEntries(Object.keys(target.requests).map((kind) => [kind, randomUUID()])),
});
/** An outcome without the names that it was asked about. */
function masked(outcome, { id, asking, closed, never, requests }) {
  let text = JSON.stringify(outcome);
  for (const name of [id, asking, closed, never, ...Object.values(requests)]) {
    text = text.replaceAll(name, "NAME");
  }
  return text;
}

bare.scenario("on a bare CLI every attack works", async (kit) => {
  const victim = await victimOf(kit, bare, await kit.client(bare.pool.address));
  const attacker = await raw(kit, bare.pool.address);
  const { target } = victim;
  target.own = newId("own");
  await attacker.call("session.create", bare.params(target.own));
  let shown = 0;
  for (const attack of ATTACKS.filter(({ works }) => works)) {
    const outcome = await within(attack.what, 10_000, attempt(attacker, attack, target));
    const ended = attack.method === "runtime.shutdown";
    assert.ok(outcome.result !== undefined || ended, `${attack.what}: ${JSON.stringify(outcome)}`);
    await within(attack.what, 10_000,
      Promise.resolve(attack.works({ attacker, victim, target, answer: outcome.result })));
    shown += 1;
  }
  kit.t.diagnostic(`${shown} attacks work`);
  bare.pool.model.release(target.mark);
});

guarded.scenario("two clients of the SDK: each lists, resumes and streams its own", async (kit) => {
  const { pool, config } = guarded;
  const users = [];
  for (const name of ["ann", "bob"]) {
    const way = await tap(kit, pool.address);
    const client = await sdk(kit, name, way.address);
    const lifecycle = [];
    client.onLifecycle((event) => lifecycle.push(event.sessionId));
    users.push({ name, way, client, lifecycle, mark: `mark-${randomUUID()}`,
      ids: [0, 1, 2].map(() => randomUUID()) });
  }
  await Promise.all(users.map(async ({ client, ids, mark }) => {
    for (const id of ids) {
      const session = await client.createSession(config(id));
      const deltas = [];
      session.on("assistant.message_delta", ({ data }) => deltas.push(data.deltaContent));
      assert.equal(await ask(session, `[[say ${mark} is mine]]`), `${mark} is mine`);
      assert.equal(deltas.join(""), `${mark} is mine`);
    }
  }));
  for (const [n, { client, ids, mark, lifecycle }] of users.entries()) {
    const other = users[1 - n];
    const listed = (await client.listSessions()).map((s) => s.sessionId);
    assert.deepEqual(listed.sort(), [...ids].sort());
    assert.equal(await client.getLastSessionId(), ids.at(-1));
    assert.ok((await client.getSessionMetadata(ids[0])).summary.includes(mark));
    for (const id of [...other.ids, randomUUID()]) {
      assert.equal(await client.getSessionMetadata(id), undefined);
      await assert.rejects(client.resumeSession(id, config(id)), /Session not found/);
      await assert.rejects(client.deleteSession(id), /not found/);
    }
    await assert.rejects(client.createSession(config(other.ids[0])), /invalid sessionId/);
    assert.deepEqual([...new Set(lifecycle)].sort(), [...ids].sort());
  }
  for (const [n, { client, ids, mark }] of users.entries()) {
    const again = await sdk(kit, users[n].name, users[n].way.address);
    await client.forceStop();
    const session = await again.resumeSession(ids[0], config(ids[0]));
    const prompts = JSON.parse(await ask(session, "[[history]]"));
    assert.equal(prompts.length, 2);
    assert.ok(prompts[0].includes(mark));
  }
  for (const [n, { way, mark }] of users.entries()) {
    const other = users[1 - n];
    const bytes = way.bytes();
    assert.ok(bytes.includes(mark), "the way keeps nothing");
    assert.ok(!bytes.includes(other.mark), "words of the other");
    // An id comes back only in the refusal of a call that named it.
    for (const body of frames(bytes)) {
      if (other.ids.some((id) => body.includes(id))) {
        assert.match(body, /"error":|"success":false/, body);
        assert.match(body, /not found|invalid sessionId/, body);
      }
    }
  }
});

/** Rows of the project's table of methods that clients call. */
const METHODS = readFileSync(new URL("../../../docs/methods.tsv", import.meta.url), "utf8")
  .trim().split("\n").slice(1).map((line) => line.split("\t"))
  .filter(([, route]) => !route.startsWith("from_backend"))
  .map(([method, , , unknown]) => ({ method, unknown }));

for (const user of ["bob", "eve"]) {
  guarded.scenario(`nothing that ${user} calls reaches Ann, and she notices nothing`,
    async (kit) => {
      const { pool, params, owners } = guarded;
      const victim = await victimOf(kit, guarded, await sdk(kit, "ann", pool.address));
      const { target } = victim;
      const way = await tap(kit, pool.address);
      const attacker = await raw(kit, way.address, { token: TOKENS[user] });
      // Where she is, he has a session and so a connection of his own.
      const [home] = await owners(target.asking);
      target.own = await poll(`a session of his on ${home}`, async () => {
        const id = newId("own");
        await attacker.call("session.create", params(id));
        return (await owners(id))[0] === home && id;
      }, 20_000);

      const nothing = nothingLike(target);
      // No id is unknown to it, so a session of hers is to it like an id that it refuses.
      const refused = { ...nothing, id: "not.an-id", closed: "not.an-id" };
      const wanted = new Set();
      const same = async (what, attack, compared) => {
        const other = attack.method === "session.create" ? refused : nothing;
        const outcomes = await Promise.all([target, other].map(async (aim) =>
          masked(await within(what, 10_000, attempt(attacker, attack, aim)), aim)));
        if (compared) assert.equal(outcomes[0], outcomes[1], what);
        wanted.add(outcomes[1]);
        return outcomes[0];
      };
      for (const attack of ATTACKS) await same(attack.what, attack, !attack.varies);

      const sessions = [target.id, target.asking, target.closed];
      let compared = 0;
      for (const { method, unknown } of METHODS) {
        // Its parameters are who the caller is.
        if (method === "connect") continue;
        await Promise.all(sessions.map((id) => same(`${method} ${id}`,
          { method, params: (aim) => naming(method, aim === target ? id : aim.id) },
          unknown !== "-")));
        compared += unknown === "-" ? 0 : 1;
      }
      assert.ok(compared > 250, `only ${compared} methods`);
      await victim.unharmed();

      const bytes = way.bytes();
      assert.ok(bytes.includes(target.own), "the way keeps nothing");
      for (const secret of [target.mark, target.desk, ...Object.values(target.requests)]) {
        assert.ok(!bytes.includes(secret), `he has received ${secret}`);
      }
      for (const body of frames(bytes)) {
        if (!sessions.some((id) => body.includes(id))) continue;
        const { id: _, jsonrpc: __, method, ...outcome } = JSON.parse(body);
        assert.equal(method, undefined, `he has heard ${body}`);
        if (outcome.error) {
          outcome.error = { code: outcome.error.code, message: outcome.error.message };
        }
        assert.ok(wanted.has(masked(outcome, target)), `he was told ${body}`);
      }
      kit.t.diagnostic(`${ATTACKS.length} attacks, ${compared} methods compared`);
    });
}
