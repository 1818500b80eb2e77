// Two users in one shared session, by clients of the official SDK: one turn at a time, in order, and
// nobody steers, ends or overtakes another's. What the model was told, in its own record, is the
// proof.
//
// Runs only through Taxiway. TAXIWAY_E2E_TURNS is the number of turns of each user.

import { createHash } from "node:crypto";
import { approveAll, RuntimeConnection } from "@github/copilot-sdk";
import { ask, assert, metric, newId, nextEvent, poll, promptOf, usePool, within } from "./suite.mjs";

const TURNS = Number(process.env.TAXIWAY_E2E_TURNS ?? 10);
const token = (name) => `token-of-${name}-0123456789`;
const identity = {
  shared: [{ pattern: "team-.*", groups: ["team"] }],
  principals: ["anna", "ben", "carl"].map((name) => ({
    name, realm: "acme", groups: ["team"],
    token_sha256: createHash("sha256").update(token(name)).digest("hex"),
  })),
};
const queueing = usePool({ mode: "taxiway", servers: 2, config: { identity } });
const rejecting = usePool({
  mode: "taxiway", servers: 1, config: { identity, sessions: { turn_lock: "reject" } },
});
const { pool, scenario, told } = queueing;
/** What a member may say about a session of another: only what it wants to hear itself. */
const joining = { streaming: true, onPermissionRequest: approveAll };

const waiting = 'taxiway_queue_length{queue="turn_lock"}';
const queued = (count) =>
  poll(`${count} in the queue`, async () => await metric(pool.admin, waiting) === count, 10_000);

/** A client of the SDK that is one of the users. */
const userOf = (kit, name, of = queueing) => kit.client(undefined, {
  connection: RuntimeConnection.forUri(of.pool.address, { connectionToken: token(name) }),
});

/** Anna's session, as she and as Ben have it. */
async function pair(kit, id, of = queueing) {
  const [anna, ben] = [await userOf(kit, "anna", of), await userOf(kit, "ben", of)];
  const created = await anna.createSession(of.config(id));
  await ask(created, "before");
  return [created, await ben.resumeSession(id, joining)];
}

/** That a call is refused because of the turn of somebody else. */
const busy = (call) => assert.rejects(call, (error) => {
  assert.equal(error.code, -32012, String(error));
  assert.match(error.message, /in use by another user|is another user's/);
  return true;
});

/** The events that show turns, as one client hears them: prompts, answers, "idle". */
function story(session) {
  const heard = { seen: [], times: [], look: () => undefined };
  session.on(({ type, data, timestamp }) => {
    if (type === "user.message") heard.seen.push(promptOf(data.content));
    else if (type === "assistant.message") heard.seen.push(data.content);
    else if (type === "session.idle") heard.seen.push("idle");
    else return;
    heard.times.push(Date.parse(timestamp));
    heard.look();
  });
  return heard;
}

/**
 * The end of the turn of a prompt, as its place in the story. `sendAndWait` takes the next end that
 * it hears: a client that is late by a turn of somebody else takes that one's, which had left
 * before its own prompt came.
 */
const ended = (heard, prompt) => new Promise((resolve) => {
  heard.look = () => {
    const own = heard.seen.findIndex((text) => text.endsWith(` ${prompt}.`));
    const end = heard.seen.indexOf("idle", own);
    if (own >= 0 && end > own) resolve({ own, end });
  };
});

scenario(`${TURNS} turns of each of two users, as fast as they go: strictly serial`,
  async (kit) => {
    const id = newId("team");
    const sessions = await pair(kit, id);
    const witness = story(await (await userOf(kit, "carl")).resumeSession(id, joining));
    const waits = [];
    const run = async (session, name) => {
      const heard = story(session);
      for (let n = 0; n < TURNS; n += 1) {
        const prompt = `${name} ${n}`;
        const sent = Date.now();
        const end = ended(heard, prompt);
        await session.send({ prompt: `[[say answer to ${prompt}]] ${prompt}.` });
        const turn = await within(prompt, 30_000, end);
        assert.deepEqual(heard.seen.slice(turn.own + 1, turn.end), [`answer to ${prompt}`]);
        // By the server's clock, since it may have heard late of turns before.
        const answers = heard.seen.slice(0, turn.own).map((text, at) => [text, heard.times[at]]);
        waits.push(answers.filter(([text, at]) => text.startsWith("answer") && at > sent).length);
      }
    };
    const from = performance.now();
    await Promise.all([run(sessions[0], "anna"), run(sessions[1], "ben")]);
    const took = performance.now() - from;

    // By the model: each request has exactly one prompt more than the one before.
    const requests = pool.model.requests(id);
    assert.equal(requests.length, 2 * TURNS + 1);
    const prompts = told(id);
    assert.equal(prompts.length, 2 * TURNS + 1);
    requests.forEach((request, n) => {
      const users = request.messages.filter((m) => m.role === "user").map((m) => promptOf(m.text));
      assert.deepEqual(users, prompts.slice(0, n + 1), `request ${n}`);
      assert.equal(request.messages.at(-1).role, "user", `request ${n} ends with its prompt`);
    });
    for (const name of ["anna", "ben"]) {
      const own = prompts.filter((text) => text.includes(` ${name} `));
      assert.deepEqual(own.map((text) => Number(text.match(/(\d+)\.$/)[1])),
        Array.from({ length: TURNS }, (_, n) => n), `${name}'s order`);
    }
    // By a client that only listens: prompt, answer, end.
    await poll("the last end", () => witness.seen.length === 6 * TURNS, 10_000);
    for (let n = 0; n < 6 * TURNS; n += 3) {
      const [prompt, answer, end] = witness.seen.slice(n, n + 3);
      assert.ok(prompt.startsWith(`[[${answer.replace("answer", "say answer")}]]`), prompt);
      assert.equal(end, "idle", prompt);
    }
    assert.ok(Math.max(...waits) <= 1, `turns of the other that were waited for: ${waits}`);
    const waited = waits.filter((n) => n > 0).length;
    assert.ok(waited >= TURNS, "they have hardly met");
    kit.t.diagnostic(`${2 * TURNS} turns in ${Math.round(took)} ms, ${waited} of them waited`);
  }, 60_000 + TURNS * 3_000);

scenario("who waits is counted, cancelled by leaving; steering and its end are the turn's own",
  async (kit) => {
    const id = newId("team-steer");
    const [anna, ben] = await pair(kit, id);
    const running = ask(anna, `[[hold ${id}]] [[say anna's]]`, 40_000);
    await within("the hold", 20_000, pool.model.held(id));
    const bens = ask(ben, "[[say ben's]]", 40_000);
    await queued(1);
    await busy(ben.send({ prompt: "turn left", mode: "immediate" }));
    await busy(ben.abort());
    const carl = await userOf(kit, "carl");
    const third = await carl.resumeSession(id, joining);
    await busy(third.abort());
    const gone = third.send({ prompt: "never" }).catch(() => "gone");
    await queued(2);
    await carl.forceStop();
    await queued(1);
    pool.model.release(id);
    assert.equal(await running, "anna's");
    assert.equal(await bens, "ben's");
    assert.equal(await gone, "gone");

    // Whose the session is makes no difference to whose the turn is.
    const again = ask(ben, `[[hold ${id}-2]] [[say ben's again]]`, 40_000);
    await within("the hold", 20_000, pool.model.held(`${id}-2`));
    await busy(anna.abort());
    await busy(anna.send({ prompt: "turn left", mode: "immediate" }));
    pool.model.release(`${id}-2`);
    assert.equal(await again, "ben's again");
    assert.ok(!told(id).includes("never") && !told(id).includes("turn left"), told(id).join());
  });

rejecting.scenario("reject: the second is refused at once, and served when the turn is over",
  async (kit) => {
    const id = newId("team-reject");
    const [anna, ben] = await pair(kit, id, rejecting);
    const running = ask(anna, `[[hold ${id}]] [[say anna's]]`, 40_000);
    await within("the hold", 20_000, rejecting.pool.model.held(id));
    const from = performance.now();
    await busy(ben.send({ prompt: "no" }));
    await busy(ben.abort());
    assert.ok(performance.now() - from < 1_000, "it waited");
    const idle = nextEvent(ben, "session.idle");
    rejecting.pool.model.release(id);
    assert.equal(await running, "anna's");
    await idle;
    assert.equal(await ask(ben, "[[say ben's]]"), "ben's");
    assert.deepEqual(rejecting.told(id).map((text) => text.replace(/\[\[hold \S+\]\] /, "")),
      ["before", "[[say anna's]]", "[[say ben's]]"]);
  });
