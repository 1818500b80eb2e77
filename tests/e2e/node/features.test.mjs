// Every feature of a session, as an application uses it through the official Node SDK. The same
// file runs against one CLI and against Taxiway: what differs is a defect of the proxy.

import { defineTool } from "@github/copilot-sdk";
import {
  ask, assert, CallError, mode, newId, nextEvent, poll, stopped, usePool, within,
} from "./suite.mjs";

const { pool, scenario, config, params, told, owners } = usePool();

const weather = (calls = []) =>
  defineTool("get_weather", {
    description: "Weather of a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string" } },
      required: ["city"],
    },
    handler: ({ city }) => {
      calls.push(city);
      return { city, sky: `sunny in ${city}` };
    },
  });
const order = (calls = []) =>
  defineTool("lookup_order", {
    description: "An order by id",
    parameters: { type: "object", properties: { id: { type: "string" } }, required: ["id"] },
    handler: ({ id }) => {
      calls.push(id);
      return `order ${id} shipped`;
    },
  });

scenario("twelve sessions on one connection", async ({ client: connect }) => {
  const client = await connect();
  const sessions = await Promise.all(
    Array.from({ length: 12 }, (_, i) => client.createSession(config(newId(`twelve-${i}`)))),
  );
  const texts = await Promise.all(sessions.map((s, i) => ask(s, `[[say answer ${i}]]`)));
  assert.deepEqual(texts, sessions.map((_, i) => `answer ${i}`));

  const counts = new Map(pool.clis.map((cli) => [cli.name, 0]));
  for (const session of sessions) {
    const names = await owners(session.sessionId);
    assert.equal(names.length, 1, `${session.sessionId} is open on [${names}]`);
    counts.set(names[0], counts.get(names[0]) + 1);
  }
  if (mode === "taxiway") {
    assert.equal(counts.size, 3);
    for (const [name, count] of counts) assert.ok(count > 0, `${name} has none of 12 sessions`);
  }

  const ids = new Set((await client.listSessions()).map((s) => s.sessionId));
  for (const { sessionId } of sessions) assert.ok(ids.has(sessionId), `${sessionId} not listed`);
  await stopped(client);
  for (const { sessionId } of sessions) {
    await poll(`${sessionId} closed`, async () => (await owners(sessionId)).length === 0, 5_000);
  }
});

scenario("streaming: the deltas join to the final text, in order", async ({ client: connect }) => {
  const client = await connect();
  const session = await client.createSession(config(newId("stream")));
  const types = [];
  let deltas = "";
  session.on((event) => {
    types.push(event.type);
    if (event.type === "assistant.message_delta") deltas += event.data.deltaContent;
  });
  const text = await ask(session, "[[len 120]]");
  assert.equal(text, Array.from({ length: 120 }, (_, i) => `tok${i}`).join(" "));
  assert.equal(deltas, text);
  const order_ = ["user.message", "assistant.turn_start", "assistant.message_delta",
    "assistant.message", "assistant.turn_end", "session.idle"].map((type) => types.indexOf(type));
  assert.ok(!order_.includes(-1), `missing in ${types}`);
  assert.deepEqual(order_, [...order_].sort((a, b) => a - b));
  assert.equal(types.filter((type) => type === "session.idle").length, 1);
  await stopped(client);
});

scenario("without streaming: no deltas", async ({ client: connect }) => {
  const client = await connect();
  const session = await client.createSession(config(newId("whole"), { streaming: false }));
  let deltas = 0;
  session.on("assistant.message_delta", () => (deltas += 1));
  assert.equal(await ask(session, "[[say in one piece]]"), "in one piece");
  assert.equal(deltas, 0);
  await stopped(client);
});

scenario("custom tools: one, chained, parallel, failing", async ({ client: connect }) => {
  const client = await connect();
  const cities = [];
  const orders = [];
  const broken = defineTool("broken", {
    description: "Always fails",
    parameters: { type: "object", properties: {} },
    handler: () => {
      throw new Error("no such thing");
    },
  });
  const tools = [weather(cities), order(orders), broken];
  const session = await client.createSession(config(newId("tools"), { tools }));

  const one = JSON.parse(await ask(session, '[[tool get_weather {"city":"Paris"}]] [[results]]'));
  assert.equal(one.length, 1);
  assert.match(one[0], /sunny in Paris/);

  const two = JSON.parse(await ask(session,
    '[[ptool get_weather {"city":"Rome"}]] [[ptool lookup_order {"id":"42"}]] [[results]]'));
  assert.equal(two.length, 2);
  assert.ok(two.some((text) => /sunny in Rome/.test(text)), `${two}`);
  assert.ok(two.some((text) => /order 42 shipped/.test(text)), `${two}`);

  const chain = JSON.parse(await ask(session,
    '[[tool get_weather {"city":"Oslo"}]] [[tool lookup_order {"id":"7"}]] [[results]]'));
  assert.match(chain[0], /sunny in Oslo/);
  assert.match(chain[1], /order 7 shipped/);
  assert.deepEqual(cities, ["Paris", "Rome", "Oslo"]);
  assert.deepEqual(orders, ["42", "7"]);

  const [failed] = JSON.parse(await ask(session, "[[tool broken {}]] [[results]]"));
  assert.ok(failed.length > 0 && !/sunny/.test(failed));
  await stopped(client);
});

scenario("permissions: approved runs, rejected does not", async ({ client: connect }) => {
  const client = await connect();
  const asked = [];
  const session = await client.createSession(config(newId("permit"), {
    onPermissionRequest: (request) => {
      asked.push(request.kind);
      const command = request.fullCommandText ?? "";
      return /good/.test(command)
        ? { kind: "approve-once" }
        : { kind: "reject", feedback: "not here" };
    },
  }));
  const shell = (word) =>
    `[[tool bash {"command":"touch ${word} && echo made-${word}","description":"x"}]] [[results]]`;
  const [good] = JSON.parse(await ask(session, shell("good")));
  assert.match(good, /made-good/);
  const [bad] = JSON.parse(await ask(session, shell("bad")));
  assert.doesNotMatch(bad, /made-bad/);
  assert.match(bad, /not here/);
  assert.deepEqual(asked, ["shell", "shell"]);
  await stopped(client);
});

scenario("hooks: asked at each place, a denied tool does not run", async ({ client: connect }) => {
  const client = await connect();
  const cities = [];
  const seen = [];
  const session = await client.createSession(config(newId("hooks"), {
    tools: [weather(cities)],
    hooks: {
      onSessionStart: () => void seen.push("start"),
      onUserPromptSubmitted: (input) => void seen.push(`prompt ${input.prompt.slice(0, 5)}`),
      onPreToolUse: (input) => {
        seen.push(`pre ${input.toolName}`);
        return input.toolArgs.city === "Hell"
          ? { permissionDecision: "deny", permissionDecisionReason: "too hot" }
          : { permissionDecision: "allow" };
      },
      onPostToolUse: (input) => void seen.push(`post ${input.toolName}`),
    },
  }));
  await ask(session, 'first [[tool get_weather {"city":"Bonn"}]]');
  const [denied] = JSON.parse(
    await ask(session, 'again [[tool get_weather {"city":"Hell"}]] [[results]]'));
  assert.match(denied, /too hot/);
  assert.deepEqual(cities, ["Bonn"]);
  assert.deepEqual(seen, [
    "start", "prompt first", "pre get_weather", "post get_weather",
    "prompt again", "pre get_weather",
  ]);
  await stopped(client);
});

scenario("user input: the question comes, the answer goes back", async ({ client: connect }) => {
  const client = await connect();
  const questions = [];
  const session = await client.createSession(config(newId("input"), {
    onUserInputRequest: ({ question }, { sessionId }) => {
      questions.push([question, sessionId]);
      return { answer: "blue, no, yellow", wasFreeform: true };
    },
  }));
  const [answer] = JSON.parse(await ask(session, "[[ask Which colour?]] [[results]]"));
  assert.match(answer, /blue, no, yellow/);
  assert.deepEqual(questions, [["Which colour?", session.sessionId]]);
  await stopped(client);
});

scenario("abort ends the turn, and the session goes on", async ({ client: connect }) => {
  const client = await connect();
  const id = newId("abort");
  const session = await client.createSession(config(id));
  const idle = nextEvent(session, "session.idle");
  await session.send({ prompt: `[[len 5]] [[hold ${id}]]` });
  await pool.model.held(id);
  await session.abort();
  assert.equal((await idle).data.aborted, true);
  assert.equal(await ask(session, "[[say still here]]"), "still here");
  await stopped(client);
});

scenario("a failing model is told as session.error", async ({ client: connect }) => {
  const client = await connect();
  const session = await client.createSession(config(newId("fail")));
  const idle = nextEvent(session, "session.idle");
  await assert.rejects(session.sendAndWait({ prompt: "[[fail 400]]" }, 20_000), /400|failure/);
  // The error rejects before the turn has ended.
  await idle;
  assert.equal(await ask(session, "[[say better]]"), "better");
  await stopped(client);
});

scenario("messages, list, metadata, last id", async ({ client: connect }) => {
  const client = await connect();
  const id = newId("read");
  const session = await client.createSession(config(id));
  await ask(session, "first question [[say first answer]]");
  await ask(session, "second question [[say second answer]]");
  const events = await session.getEvents();
  const said = events
    .filter((e) => e.type === "user.message" || e.type === "assistant.message")
    .map((e) => e.data.content);
  assert.deepEqual(said, [
    "first question [[say first answer]]", "first answer",
    "second question [[say second answer]]", "second answer",
  ]);
  const listed = (await client.listSessions()).filter((s) => s.sessionId === id);
  assert.equal(listed.length, 1);
  assert.match(listed[0].summary, /first question/);
  const metadata = await client.getSessionMetadata(id);
  assert.equal(metadata?.sessionId, id);
  assert.equal(await client.getSessionMetadata(newId("nobody")), undefined);
  assert.equal(await client.getLastSessionId(), id);
  await stopped(client);
});

scenario("resume after disconnect, on the same and on a new connection", async (kit) => {
  const client = await kit.client();
  const id = newId("resume");
  const first = await client.createSession(config(id, { tools: [weather()] }));
  await ask(first, "alpha");
  await first.disconnect();
  await poll("closed", async () => (await owners(id)).length === 0, 5_000);

  const cities = [];
  const again = await client.resumeSession(id, config(id, { tools: [weather(cities)] }));
  await ask(again, 'beta [[tool get_weather {"city":"Kyiv"}]]');
  assert.deepEqual(cities, ["Kyiv"]);
  await stopped(client);

  const other = await kit.client();
  const third = await other.resumeSession(id, config(id));
  assert.equal((await owners(id)).length, 1);
  const history = JSON.parse(await ask(third, "gamma [[history]]"));
  assert.deepEqual(history.length, 3);
  assert.match(history[0], /alpha/);
  assert.match(history[1], /beta/);
  await stopped(other);
});

scenario("delete: gone from disk, list and resume", async ({ client: connect }) => {
  const client = await connect();
  const id = newId("delete");
  const session = await client.createSession(config(id));
  await ask(session, "hello");
  await session.disconnect();
  const deleted = new Promise((resolve) => {
    client.onLifecycle((event) => {
      if (event.type === "session.deleted" && event.sessionId === id) resolve();
    });
  });
  await client.deleteSession(id);
  await within("session.deleted", 5_000, deleted);
  assert.ok(!(await client.listSessions()).some((s) => s.sessionId === id));
  await assert.rejects(client.resumeSession(id, config(id)), /Session not found/);
  await assert.rejects(client.deleteSession(id), /Session file not found/);
  await stopped(client);
});

scenario("lifecycle events come for sessions of every CLI", async ({ client: connect }) => {
  const watcher = await connect();
  const client = await connect();
  const created = new Set();
  watcher.onLifecycle((event) => event.type === "session.created" && created.add(event.sessionId));
  const ids = Array.from({ length: 6 }, (_, i) => newId(`life-${i}`));
  for (const id of ids) await ask(await client.createSession(config(id)), "x");
  await poll("session.created of all", () => ids.every((id) => created.has(id)), 5_000);
  await stopped(client);
  await stopped(watcher);
});

scenario("calls outside a session; errors come back unchanged", async (kit) => {
  const { raw } = kit;
  const client = await kit.client();
  assert.equal((await client.ping("hi")).message, "pong: hi");
  const state = await client.getStatus();
  assert.equal(state.protocolVersion, 3);
  assert.equal(state.version, "1.0.102");
  assert.equal((await client.getAuthStatus()).isAuthenticated, false);
  await assert.rejects(client.listModels(), /Not authenticated/);
  assert.equal(await client.getForegroundSessionId(), undefined);
  await stopped(client);

  const direct = await raw(pool.clis[0].port);
  const through = await raw();
  const both = async (method, callParams) => {
    const errors = [];
    for (const connection of [direct, through]) {
      const error = await connection.call(method, callParams).then(
        (result) => assert.fail(`${method} gave ${JSON.stringify(result)}`),
        (failure) => failure,
      );
      assert.ok(error instanceof CallError, `${method}: ${error}`);
      errors.push({ code: error.code, text: error.text });
    }
    assert.deepEqual(errors[1], errors[0], method);
    return errors[1];
  };
  const unknown = await both("foo.bar", { a: 1 });
  assert.deepEqual(unknown, { code: -32601, text: "Unhandled method foo.bar" });
  const id = newId("nobody");
  assert.equal((await both("session.sendAndWait", { sessionId: id, prompt: "x" })).code, -32601);
  assert.equal((await both("models.list", {})).code, -32603);
  for (const method of ["session.send", "session.abort", "session.getMessages",
    "session.mode.get", "session.resume"]) {
    const { code, text } = await both(method, { sessionId: id, prompt: "x" });
    assert.equal(code, -32603, method);
    assert.match(text, /Session not found/, method);
  }
  await both("session.send", { prompt: "x" });
  await both("session.create", params("not/an/id"));
});

scenario("a large prompt and a large tool result pass whole", async ({ client: connect }) => {
  const client = await connect();
  // The model's window bounds the prompt; a tool result has no bound.
  const size = 3 * 1024 * 1024;
  const big = defineTool("big", {
    description: "A large result",
    parameters: { type: "object", properties: {} },
    handler: () => "r".repeat(size),
  });
  const session = await client.createSession(config(newId("large"), { tools: [big] }));
  const prompt = `${"word ".repeat(40_000)} é😀 [[say ok]]`;
  assert.equal(await ask(session, prompt), "ok");
  const sent = (await session.getEvents()).find((e) => e.type === "user.message");
  assert.equal(sent.data.content, prompt);
  assert.equal((await client.ping("m".repeat(size))).message, `pong: ${"m".repeat(size)}`);
  const done = nextEvent(session, "tool.execution_complete");
  await session.send({ prompt: "[[tool big {}]] [[say ok]]" });
  assert.equal((await done).data.success, true);
  await stopped(client);
});

scenario("client.stop() with open sessions and with a running turn returns", async (kit) => {
  const client = await kit.client();
  const id = newId("stop");
  const session = await client.createSession(config(id));
  await ask(session, "one turn first");
  await session.send({ prompt: `[[hold ${id}]]` });
  await pool.model.held(id);
  await stopped(client);
  assert.equal(told(id).length, 2);
  pool.model.release(id);
});
