// Servers killed, stopped and restarted at random under real load: what was acknowledged is kept,
// what is lost is said, and no session ever has two owners.
//
// Three real CLI servers on one home, Taxiway in shared-storage mode, twenty sessions of four
// Node SDK clients. The order of faults and prompts comes from one seed, which is printed:
// CHAOS_SEED=N repeats them (not the scheduling), CHAOS_SECONDS=N says how long (default 40).

import { randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { defineTool } from "@github/copilot-sdk";
import { eventsOnDisk } from "../pool.mjs";
import {
  assert, CallError, metric, newId, poll, promptOf, RawClient, usePool, within,
} from "./suite.mjs";

const SECONDS = Number(process.env.CHAOS_SECONDS ?? 40);
/** A machine with other work goes on for longer, until there is something to judge. */
const MOST_SECONDS = Math.max(SECONDS, 160);
const SEED = Number(process.env.CHAOS_SEED ?? randomInt(2 ** 31));
const CLIENTS = 4;
const SESSIONS = 20;
/**
 * Longest time for any call or turn. Generous: what never settles is not forgiven, and what is
 * slow on a machine with other work is no defect; other tests measure time.
 */
const BOUND_MS = 120_000;
/** Longer than a healthy server of a busy machine says nothing at all. */
const HANG_MS = 4_000;
/** Time for a server that woke up to be cleaned by Taxiway: two probes and the calls. */
const CLEAN_MS = 10_000;
/** Time for a server to end after SIGTERM, see pool.mjs. */
const STOP_MS = 6_000;

const { pool, scenario, config, told, owners } = usePool({
  mode: "taxiway",
  routing: "shared-storage",
  // Two cores for all: a probe may be late, and the one server that is left must not be given up.
  config: { failover: { hang_timeout: `${HANG_MS}ms` }, health: { timeout: "1s" } },
});

/** A small seeded generator (mulberry32); each worker has its own stream of it. */
function dice(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    between: (from, to) => from + Math.floor(next() * (to - from + 1)),
    one: (list) => list[Math.floor(next() * list.length)],
  };
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const MARK = /mark-[a-z0-9-]+-\d+-end/;
const markOf = (text) => MARK.exec(text)?.[0];

/**
 * One turn, judged by its events. `acked`: the send was answered. `outcome`: `completed` (its own
 * prompt was seen and the turn ended by itself), `lost` (told by session.error or an aborted
 * idle), `refused` (the send got an error, `at` some time).
 */
async function turn(session, mark, prompt) {
  let stop;
  const ended = new Promise((resolve) => {
    let mine = false;
    let error;
    stop = session.on(({ type, data }) => {
      if (type === "user.message") mine ||= data.content.includes(mark);
      else if (type === "session.error") error ??= data.message;
      else if (type === "session.idle") {
        if (error !== undefined || data.aborted) resolve({ outcome: "lost", error });
        else if (mine) resolve({ outcome: "completed" });
      }
    });
  });
  try {
    try {
      await within(`the answer to the send of ${mark}`, BOUND_MS, session.send({ prompt }));
    } catch (error) {
      if (error.code === undefined) throw error;
      // It may have run: its turn's end, if it had one, is told in the next moments.
      const at = Date.now();
      await Promise.race([ended, pause(1_000)]);
      return { acked: false, outcome: "refused", at, error: `${error.code} ${error.message}` };
    }
    return { acked: true, ...await within(`the end of the turn of ${mark}`, BOUND_MS, ended) };
  } finally {
    stop();
  }
}

const script = (random, mark) => random.one([
  `${mark} [[len 3]]`,
  `${mark} [[len 30]] [[slow 15]]`,
  `${mark} [[len 80]] [[slow 20]]`,
  `${mark} [[tool note {"text":"a"}]] [[len 10]] [[slow 10]]`,
  `${mark} [[tool note {"text":"a"}]] [[tool slow_note {"text":"b"}]]`,
  `${mark} [[ptool note {"text":"a"}]] [[ptool slow_note {"text":"b"}]] [[len 5]]`,
]);

/** Calls beside the turns: read-only, from the same client. Any answer will do, an error too. */
const asides = [
  ({ session }) => session.rpc.mode.get(),
  ({ session }) => session.rpc.metadata.isProcessing(),
  ({ session }) => session.getEvents(),
  ({ client }) => client.listSessions(),
  ({ client }) => client.ping("aside"),
];

/** Uses one session until `over()`; everything that was said goes into its ledger. */
async function use(seat, random, over) {
  while (!over()) {
    await pause(random.between(50, 800));
    if (over()) return;
    if (random.between(0, 3) === 0) {
      const call = random.one(asides)(seat);
      await within(`a call beside the turns of ${seat.id}`, BOUND_MS, call.catch((error) => {
        if (error.code === undefined) throw error;
      }));
    }
    const mark = `mark-${seat.id}-${seat.ledger.length}-end`;
    const entry = { mark, outcome: "open" };
    seat.ledger.push(entry);
    Object.assign(entry, await turn(seat.session, mark, script(random, mark)));
  }
}

/** Breaks one server at a time, at most two of three at once, until `over()`. */
async function breakThings(random, over, faults, spans) {
  const during = async (kind, cli, body) => {
    const span = { kind, cli: cli.name, from: Date.now(), to: Infinity };
    spans.push(span);
    await body();
    span.to = Date.now();
  };
  const busy = new Map();
  /** Starts it, and leaves it alone for as long as that took: slow machines are broken less. */
  const start = async (cli) => {
    const begin = performance.now();
    await cli.start();
    await pause(performance.now() - begin);
  };
  const kinds = {
    kill: async (cli) => {
      await cli.kill();
      await pause(random.between(100, 2_000));
      await start(cli);
    },
    restart: async (cli) => {
      await during("ending", cli, () => cli.process.stop());
      await pause(random.between(0, 1_000));
      await start(cli);
    },
    stop: async (cli) => {
      await during("stopped", cli, async () => {
        cli.pause();
        await pause(random.between(100, 2 * HANG_MS));
        cli.wake();
      });
    },
  };
  while (!over()) {
    await pause(random.between(500, 3_000));
    const idle = pool.clis.filter((cli) => !busy.has(cli));
    // One server is always left, and has had time to take the others' sessions.
    if (over() || idle.length < 2) continue;
    const cli = random.one(idle);
    const kind = random.one(Object.keys(kinds));
    faults[kind] = (faults[kind] ?? 0) + 1;
    busy.set(cli, kinds[kind](cli).finally(() => busy.delete(cli)));
  }
  await Promise.all(busy.values());
}

/**
 * Asks each living server all the time which sessions it has open. Two that both say so, and say
 * so again, are two owners.
 */
async function watchOwners(ids, over, found) {
  const sides = new Map();
  const has = async (cli, sessionId) => {
    if (cli.paused || cli.process.ended) return false;
    try {
      if (sides.get(cli)?.closedAt !== undefined) sides.delete(cli);
      if (!sides.has(cli)) {
        sides.set(cli, await within("connect", 1_000, RawClient.connect(cli.port)));
      }
      const answer = sides.get(cli).call("session.mode.get", { sessionId });
      await within("mode.get", 1_000, answer);
      return true;
    } catch (error) {
      if (error instanceof CallError) return false;
      sides.get(cli)?.destroy();
      sides.delete(cli);
      return false;
    }
  };
  const allOf = async (cli) => {
    // The first call connects.
    if (!sides.has(cli)) await has(cli, ids[0]);
    const open = await Promise.all(ids.map((id) => has(cli, id)));
    return new Set(ids.filter((_, i) => open[i]));
  };
  let rounds = 0;
  while (!over()) {
    const open = await Promise.all(pool.clis.map(allOf));
    for (const id of ids) {
      const before = pool.clis.filter((_, i) => open[i].has(id));
      if (before.length < 2) continue;
      const still = [];
      for (const cli of before) if (await has(cli, id)) still.push(cli.name);
      if (still.length > 1) found.push({ id, at: Date.now(), on: still });
    }
    rounds += 1;
    await pause(200);
  }
  for (const side of sides.values()) side.destroy();
  return rounds;
}

/**
 * When which server may have sessions open, and write to their logs, that others have by now: it
 * was stopped, woke up, and has not been cleaned yet. Without a fence nothing keeps it from that.
 * So may one that this machine has starved for HANG_MS: Taxiway's log says that it gave it up.
 */
function unfenced(spans) {
  const all = spans.filter(({ kind }) => kind === "stopped").map((span) => ({ ...span }));
  const line = /^(\S+Z) .* backend="(\S+)" what="(released|returned)"(?: reason="(\w+)")?/;
  const log = readFileSync(pool.taxiway.process.log, "utf8");
  const open = new Map();
  const lines = log.split("\n").map((text) => line.exec(text)).filter(Boolean);
  for (const [, time, cli, what, reason] of lines) {
    const at = Date.parse(time);
    if (what === "released" && reason === "unfenced") {
      const span = { kind: "starved", cli, from: at - HANG_MS, to: Infinity };
      open.set(cli, span);
      const known = all.some((s) => s.cli === cli && s.from <= at && at <= s.to + HANG_MS);
      if (!known) all.push(span);
    } else if (what === "returned" && open.has(cli)) {
      open.get(cli).to = at;
      open.delete(cli);
    }
  }
  return all.map((span) => ({ ...span, to: span.to + CLEAN_MS }));
}

/**
 * One writer: each event follows the one before it. What a server wrote that woke up without a
 * fence stands beside; how much that is.
 */
function checkChain(id, events, spans) {
  const byId = new Map(events.map((event) => [event.id, event]));
  const chain = new Set();
  for (let at = events.at(-1); at !== undefined; at = byId.get(at.parentId)) chain.add(at);
  const strays = events.filter((event) => !chain.has(event));
  // The last one says when: the first ones of a session are kept in memory until its first turn.
  const parents = new Set(strays.map(({ parentId }) => parentId));
  const excused = ({ timestamp }) => {
    const at = Date.parse(timestamp);
    return spans.some(({ from, to }) => from - 1_000 <= at && at <= to);
  };
  const bad = strays.filter((event) => !parents.has(event.id) && !excused(event));
  const said = bad.map(({ type, timestamp }) => `${type} at ${timestamp}`);
  assert.deepEqual(said, [], `two servers wrote the log of ${id}`);
  return strays.length;
}

/** Every completed mark once, in the order sent. */
function checkHistory(seat, marks, where) {
  const sent = seat.ledger.map(({ mark }) => mark);
  const places = marks.map((mark) => sent.indexOf(mark));
  assert.ok(!places.includes(-1), `${where} of ${seat.id}: never sent: ${marks}`);
  // What was refused or lost may have been executed late, by a server that was stopped and woke up
  // without a fence: only what was completed has a place of its own.
  const whole = places.filter((at) => seat.ledger[at].outcome === "completed");
  for (let i = 1; i < whole.length; i += 1) {
    assert.ok(whole[i] > whole[i - 1],
      `${where} of ${seat.id}: ${sent[whole[i - 1]]} comes before ${sent[whole[i]]}`);
  }
  for (const { mark, outcome } of seat.ledger) {
    if (outcome === "completed") {
      assert.ok(marks.includes(mark), `${where} of ${seat.id}: ${mark} is not there`);
    }
  }
}

// A server that was stopped and woke up without a fence may ask the model once more, and last.
const marksTold = (id, mark) => told(id, mark).map((text) => markOf(promptOf(text))).filter(Boolean);

scenario("random kills, stops and restarts lose nothing that was acknowledged", async (kit) => {
  kit.t.diagnostic(`CHAOS_SEED=${SEED} CHAOS_SECONDS=${SECONDS}`);
  const notes = (id) => [
    defineTool("note", {
      description: "Notes a text", skipPermission: true,
      parameters: { type: "object", properties: { text: { type: "string" } } },
      handler: ({ text }) => `noted ${text} for ${id}`,
    }),
    defineTool("slow_note", {
      description: "Notes a text slowly", skipPermission: true,
      parameters: { type: "object", properties: { text: { type: "string" } } },
      handler: async ({ text }) => {
        await pause(400);
        return `noted ${text} for ${id}`;
      },
    }),
  ];
  const clients = await Promise.all(Array.from({ length: CLIENTS }, () => kit.client()));
  const seats = await Promise.all(Array.from({ length: SESSIONS }, async (_, i) => {
    const id = newId(`chaos-${i}`);
    const client = clients[i % CLIENTS];
    const session = await client.createSession(config(id, { tools: notes(id) }));
    return { id, client, session, ledger: [] };
  }));

  const begin = performance.now();
  const completed = () => seats.flatMap(({ ledger }) => ledger)
    .filter(({ outcome }) => outcome === "completed").length;
  const over = () => {
    const seconds = (performance.now() - begin) / 1_000;
    return seconds > MOST_SECONDS || (seconds > SECONDS && completed() > SESSIONS * 2);
  };
  let watching = true;
  const faults = {};
  const spans = [];
  const seen = [];
  const watch = watchOwners(seats.map(({ id }) => id), () => !watching, seen);
  const broken = breakThings(dice(SEED), over, faults, spans);
  const used = Promise.all(seats.map((seat, i) => use(seat, dice(SEED + 1 + i), over)));
  // Whatever fails first is what the report says; nothing is left running behind it.
  try {
    await used;
    await broken;
  } finally {
    await Promise.allSettled([used, broken]);
    watching = false;
  }
  const rounds = await watch;
  const enough = completed() > SESSIONS;

  for (const cli of pool.clis) {
    await poll(`${cli.name} is up`, async () =>
      (await metric(pool.admin, `taxiway_backend_up{backend="${cli.name}"}`)) === 1, 60_000);
  }
  // No session is lost: each answers a turn, and the model is told what it was told before.
  const oneMore = async (seat, session, where) => {
    const mark = `mark-${seat.id}-${seat.ledger.length}-end`;
    const result = await turn(session, mark, `${mark} [[say alive]]`);
    seat.ledger.push({ mark, ...result });
    assert.equal(result.outcome, "completed", `${seat.id} is lost: ${JSON.stringify(result)}`);
    checkHistory(seat, marksTold(seat.id, mark), where);
  };
  await Promise.all(seats.map((seat) => oneMore(seat, seat.session, "the history")));

  for (const { id } of seats) {
    const open = await owners(id);
    assert.equal(open.length, 1, `${id} is open on ${open}`);
  }

  // The same from the disk: on a new connection, and in the log itself.
  for (const client of clients) await within("stop", BOUND_MS, client.stop());
  const late = await kit.client();
  const loose = unfenced(spans);
  let strays = 0;
  await Promise.all(seats.map(async (seat) => {
    const again = await within(`resume of ${seat.id}`, BOUND_MS,
      late.resumeSession(seat.id, config(seat.id, { tools: notes(seat.id) })));
    await oneMore(seat, again, "the resumed history");
    const events = eventsOnDisk(pool.clis[0], seat.id);
    const onDisk = events.filter(({ type }) => type === "user.message")
      .map(({ data }) => markOf(data.content)).filter(Boolean);
    checkHistory(seat, onDisk, "the log on disk");
    strays += checkChain(seat.id, events, loose);
  }));

  const count = { completed: 0, lost: 0, refused: 0 };
  for (const { ledger } of seats) for (const { outcome } of ledger) count[outcome] += 1;
  const refused = seats.flatMap(({ ledger }) => ledger).filter((e) => e.outcome === "refused");
  const starved = loose.filter(({ kind }) => kind === "starved").length;
  kit.t.diagnostic(`faults ${JSON.stringify(faults)}, turns ${JSON.stringify(count)}, `
    + `${rounds} rounds of questions for owners, ${strays} events of woken servers, `
    + `${starved} servers starved`);
  kit.t.diagnostic(`refused: ${JSON.stringify([...new Set(refused.map(({ error }) => error))])}`);
  const doubles = seen.filter(({ at, on }) =>
    !loose.some(({ cli, from, to }) => on.includes(cli) && from <= at && at <= to));
  assert.deepEqual(doubles, [], "two owners");
  for (const { error, at } of refused) {
    // A server that ends has words of its own for what it does not do any more.
    const ending = spans.some(({ kind, from, to }) =>
      kind === "ending" && from <= at && at <= to + STOP_MS);
    assert.match(error, ending ? /^-32(010|011|013|603) / : /^-320(10|11|13) /);
  }
  assert.ok(rounds > SECONDS / 5, `only ${rounds} rounds of questions for owners`);
  assert.ok(Object.values(faults).reduce((a, b) => a + b, 0) >= SECONDS / 10, "too few faults");
  assert.ok(enough, "too few turns completed");
}, MOST_SECONDS * 1_000 + 300_000);
