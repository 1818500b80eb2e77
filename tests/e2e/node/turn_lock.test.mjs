// Two clients of the official SDK in one shared session: one turn at a time, in order, and nobody
// steers or is overtaken. What the model was told, in its own record, is the proof.
//
// Runs only through Taxiway. TAXIWAY_E2E_TURNS is the number of turns of each client.

import { ask, assert, metric, newId, nextEvent, poll, promptOf, usePool, within } from "./suite.mjs";

const TURNS = Number(process.env.TAXIWAY_E2E_TURNS ?? 10);
const { pool, scenario, config, told } = usePool({ mode: "taxiway" });
const rejecting = usePool({ mode: "taxiway", config: { sessions: { turn_lock: "reject" } } });

const waiting = 'taxiway_queue_length{queue="turn_lock"}';
const queued = (count) =>
  poll(`${count} in the queue`, async () => await metric(pool.admin, waiting) === count, 10_000);

/** Two clients that have the session open. */
async function pair(kit, id, of = { pool, config }) {
  const [first, second] = [await kit.client(of.pool.address), await kit.client(of.pool.address)];
  const created = await first.createSession(of.config(id));
  await ask(created, "before");
  return [created, await second.resumeSession(id, of.config(id))];
}

/** The kinds of events that show turns, as one client hears them. */
function story(session) {
  const seen = [];
  session.on(({ type, data }) => {
    if (type === "user.message") seen.push(promptOf(data.content));
    if (type === "session.idle") seen.push("idle");
  });
  return seen;
}

scenario(`${TURNS} turns of each of two clients, as fast as they go: strictly serial`,
  async (kit) => {
    const id = newId("shared");
    const sessions = await pair(kit, id);
    const witness = story(await (await kit.client()).resumeSession(id, config(id)));
    const waits = [];
    const run = async (session, name) => {
      const heard = story(session);
      for (let n = 0; n < TURNS; n += 1) {
        const prompt = `${name} ${n}`;
        const from = heard.length;
        const answer = await ask(session, `[[say answer to ${prompt}]] ${prompt}.`, 60_000);
        assert.equal(answer, `answer to ${prompt}`, "the answer of somebody else's turn");
        const own = heard.findIndex((text, at) => at >= from && text.endsWith(` ${prompt}.`));
        assert.ok(own >= 0, `${prompt} was not shown`);
        waits.push(heard.slice(from, own).filter((text) => text !== "idle").length);
      }
    };
    await Promise.all([run(sessions[0], "anna"), run(sessions[1], "ben")]);

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
    // By a client that only listens: prompt, end, prompt, end.
    await poll("the last end", () => witness.length === 4 * TURNS, 10_000);
    witness.forEach((text, n) => assert.equal(text === "idle", n % 2 === 1, `${n}: ${witness}`));
    assert.ok(Math.max(...waits) <= 1, `turns of the other that were waited for: ${waits}`);
    kit.t.diagnostic(`waited for a foreign turn: ${waits.filter((n) => n > 0).length} times`);
  }, 60_000 + TURNS * 3_000);

scenario("who waits is counted, cancelled by leaving, and steering is the turn's own",
  async (kit) => {
    const id = newId("steer");
    const [anna, ben] = await pair(kit, id);
    const running = ask(anna, `[[hold ${id}]] [[say anna's]]`, 40_000);
    await within("the hold", 20_000, pool.model.held(id));
    const bens = ask(ben, "[[say ben's]]", 40_000);
    await queued(1);
    await assert.rejects(ben.send({ prompt: "turn left", mode: "immediate" }), (error) => {
      assert.equal(error.code, -32012);
      assert.match(error.message, /in use by another user/);
      return true;
    });
    const carl = await kit.client();
    const third = await carl.resumeSession(id, config(id));
    const gone = third.send({ prompt: "never" }).catch(() => "gone");
    await queued(2);
    await carl.forceStop();
    await queued(1);
    pool.model.release(id);
    assert.equal(await running, "anna's");
    assert.equal(await bens, "ben's");
    assert.equal(await gone, "gone");
    assert.ok(!told(id).includes("never") && !told(id).includes("turn left"), told(id).join());
  });

rejecting.scenario("reject: the second is refused at once, and served when the turn is over",
  async (kit) => {
    const id = newId("reject");
    const [anna, ben] = await pair(kit, id, rejecting);
    const running = ask(anna, `[[hold ${id}]] [[say anna's]]`, 40_000);
    await within("the hold", 20_000, rejecting.pool.model.held(id));
    const from = performance.now();
    await assert.rejects(ben.send({ prompt: "no" }), (error) => error.code === -32012);
    assert.ok(performance.now() - from < 1_000, "it waited");
    const idle = nextEvent(ben, "session.idle");
    rejecting.pool.model.release(id);
    assert.equal(await running, "anna's");
    await idle;
    assert.equal(await ask(ben, "[[say ben's]]"), "ben's");
    assert.deepEqual(rejecting.told(id).map((text) => text.replace(/\[\[hold \S+\]\] /, "")),
      ["before", "[[say anna's]]", "[[say ben's]]"]);
  });
