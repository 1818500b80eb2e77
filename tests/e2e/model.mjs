// A scripted OpenAI-compatible model: the prompt says what it answers.
//
// The real CLI reaches it through its BYOK provider, so that every test decides by itself how
// many tokens a turn has, which tools are called, and when a turn ends. It must not guess, wait
// on a clock unless told to, or forget silently: what it dropped is counted.
//
// Directives, anywhere in the last user message:
//   [[say TEXT]]         answers exactly TEXT
//   [[len N]]            answers N numbered tokens (default 3)
//   [[slow MS]]          waits between two tokens
//   [[hold NAME]]        after the first token waits for POST /release/NAME; before the answer,
//                        so that a test ends a turn when it wants to, without a clock
//   [[flow NAME]]        answers NAME-0 NAME-1 … until POST /release/NAME; [[slow MS]] between
//   [[tool NAME {…}]]    calls a tool; several: one model round each, in order
//   [[ptool NAME {…}]]   calls a tool; all of a message in one round, before any [[tool …]]
//   [[ask QUESTION]]     calls ask_user, in order with [[tool …]]
//   [[history]]          answers with the JSON list of user messages it was sent
//   [[results]]          answers with the JSON list of this turn's tool results
//   [[fail STATUS]]      answers with this HTTP status
//   [[steer]]            in a message that arrives during a turn: the script of the message
//                        before it goes on
// Arguments must not contain "]]".
//
// Requests are kept by API key: a test that gives each session its own key can ask what the
// model was told in it (GET /requests?key=KEY).

import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

/** Requests kept over all keys; the oldest go first. */
const MAX_REQUESTS = 4000;
/** Characters kept of one message; system messages are dropped whole (42 KB each). */
const MAX_CONTENT = 4096;
/** Largest request body read. */
const MAX_BODY = 16 * 1024 * 1024;
/** No hold outlives this, so that a failed test leaves no turn behind. */
const MAX_HOLD_MS = 60_000;
const MAX_TOKENS = 20_000;

/** The text of a chat message, whichever of the two content forms it has. */
export function textOf(message) {
  if (typeof message?.content === "string") return message.content;
  if (!Array.isArray(message?.content)) return "";
  return message.content.map((part) => (typeof part?.text === "string" ? part.text : "")).join("");
}

/** Reads the directives of one prompt. */
export function readScript(prompt) {
  const script = { len: 3, slow: 0, rounds: [], parallel: [] };
  for (const [, word, rest = ""] of prompt.matchAll(/\[\[(\w+)(?:\s+([\s\S]*?))?\]\]/g)) {
    if (word === "say") script.say = rest;
    else if (word === "len") script.len = Math.min(Number(rest) || 0, MAX_TOKENS);
    else if (word === "slow") script.slow = Number(rest) || 0;
    else if (word === "hold" || word === "flow") script[word] = rest;
    else if (word === "fail") script.fail = Number(rest);
    else if (word === "history" || word === "results" || word === "steer") script[word] = true;
    else if (word === "ask") {
      script.rounds.push([{ name: "ask_user", args: JSON.stringify({ question: rest }) }]);
    } else if (word === "tool" || word === "ptool") {
      const [, name, args = "{}"] = rest.match(/^(\S+)\s*([\s\S]+)?$/) ?? [];
      if (!name) continue;
      if (word === "tool") script.rounds.push([{ name, args }]);
      else script.parallel.push({ name, args });
    }
  }
  if (script.parallel.length > 0) script.rounds.unshift(script.parallel);
  return script;
}

/** What to answer to a conversation: `{ script, calls }` or `{ script, text }`. */
export function plan(messages) {
  const isUser = (message) => message.role === "user";
  let at = messages.findLastIndex(isUser);
  // A steering message does not end the script that it arrives in.
  while (at > 0 && readScript(textOf(messages[at])).steer) {
    const before = messages.slice(0, at).findLastIndex(isUser);
    if (before < 0) break;
    at = before;
  }
  const script = readScript(at < 0 ? "" : textOf(messages[at]));
  const turn = messages.slice(at + 1);
  const done = turn.filter((message) => message.tool_calls?.length > 0).length;
  if (done < script.rounds.length) return { script, calls: script.rounds[done] };
  if (script.history) {
    return { script, text: JSON.stringify(messages.filter(isUser).map(textOf)) };
  }
  if (script.results) {
    return { script, text: JSON.stringify(turn.filter((m) => m.role === "tool").map(textOf)) };
  }
  if (script.say !== undefined) return { script, text: script.say };
  if (script.flow) {
    const tokens = Array.from({ length: MAX_TOKENS }, (_, i) => `${script.flow}-${i}`);
    return { script, text: tokens.join(" ") };
  }
  return { script, text: Array.from({ length: script.len }, (_, i) => `tok${i}`).join(" ") };
}

/** Text cut into tokens that join to the same text. */
function tokensOf(text) {
  return text.match(/\s*\S+\s*$|\s*\S+/g) ?? [text];
}

async function bodyOf(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MAX_BODY) throw new Error("request body too large");
    chunks.push(chunk);
  }
  return JSON.parse(Buffer.concat(chunks).toString("utf8"));
}

/**
 * Starts a model on a free loopback port.
 * `requests(key)` gives what it was asked, `release(name)` ends a hold, `held(name)` resolves
 * when a turn has reached that hold.
 */
export async function startModel() {
  const log = [];
  let dropped = 0;
  let serial = 0;
  /** name → { released, waiters, reached, arrivals } */
  const holds = new Map();

  const holdOf = (name) => {
    if (!holds.has(name)) {
      holds.set(name, { released: false, waiters: new Set(), reached: 0, arrivals: new Set() });
    }
    return holds.get(name);
  };
  const released = (name) => holdOf(name).released;
  const release = (name) => {
    const hold = holdOf(name);
    hold.released = true;
    for (const wake of hold.waiters) wake();
    hold.waiters.clear();
  };
  /** Resolves when `count` turns have reached the hold. */
  const held = (name, count = 1) =>
    new Promise((resolve) => {
      const hold = holdOf(name);
      const look = () => {
        if (hold.reached < count) return;
        hold.arrivals.delete(look);
        resolve();
      };
      hold.arrivals.add(look);
      look();
    });
  const waitAt = (name, gone) =>
    new Promise((resolve) => {
      const hold = holdOf(name);
      hold.reached += 1;
      for (const look of [...hold.arrivals]) look();
      if (hold.released || gone.aborted) return resolve();
      const timer = setTimeout(wake, MAX_HOLD_MS);
      function wake() {
        clearTimeout(timer);
        hold.waiters.delete(wake);
        gone.removeEventListener("abort", wake);
        resolve();
      }
      hold.waiters.add(wake);
      gone.addEventListener("abort", wake);
    });
  const requests = (key) => (key === undefined ? log : log.filter((entry) => entry.key === key));

  function record(request, body) {
    const messages = (body.messages ?? [])
      .filter((message) => message.role !== "system" && message.role !== "developer")
      .map((message) => ({
        role: message.role,
        text: textOf(message).slice(0, MAX_CONTENT),
        ...(message.tool_calls && { calls: message.tool_calls.map((c) => c.function?.name) }),
        ...(message.tool_call_id && { tool_call_id: message.tool_call_id }),
      }));
    log.push({
      key: (request.headers.authorization ?? "").replace(/^Bearer /i, ""),
      model: body.model,
      stream: body.stream === true,
      tools: (body.tools ?? []).map((tool) => tool.function?.name),
      messages,
    });
    if (log.length > MAX_REQUESTS) {
      dropped += log.length - MAX_REQUESTS;
      log.splice(0, log.length - MAX_REQUESTS);
    }
  }

  async function complete(request, response) {
    const body = await bodyOf(request);
    record(request, body);
    const { script, calls, text } = plan(body.messages ?? []);
    if (script.fail) {
      return reply(response, script.fail, { error: { message: "scripted failure", code: "x" } });
    }
    serial += 1;
    const head = { id: `chatcmpl-${serial}`, created: 1_700_000_000, model: body.model };
    const usage = { prompt_tokens: 10, completion_tokens: 10, total_tokens: 20 };
    const toolCalls = calls?.map((call, index) => ({
      index,
      id: `call_${serial}_${index}`,
      type: "function",
      function: { name: call.name, arguments: call.args },
    }));
    const finish_reason = toolCalls ? "tool_calls" : "stop";
    const gone = new AbortController();
    response.on("close", () => gone.abort());

    if (body.stream !== true) {
      if (script.hold && !toolCalls) await waitAt(script.hold, gone.signal);
      const message = toolCalls
        ? { role: "assistant", content: null, tool_calls: toolCalls }
        : { role: "assistant", content: text };
      const choices = [{ index: 0, message, finish_reason }];
      return reply(response, 200, { ...head, object: "chat.completion", choices, usage });
    }

    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    const send = (chunk) => response.write(`data: ${JSON.stringify(chunk)}\n\n`);
    const delta = (value, finish = null) =>
      send({
        ...head,
        object: "chat.completion.chunk",
        choices: [{ index: 0, delta: value, finish_reason: finish }],
      });
    delta({ role: "assistant", content: toolCalls ? null : "" });
    if (toolCalls) {
      delta({ tool_calls: toolCalls });
    } else {
      for (const [index, token] of tokensOf(text).entries()) {
        if (gone.signal.aborted) return;
        if (script.flow && index > 0 && released(script.flow)) break;
        delta({ content: token });
        if (index === 0 && script.hold) await waitAt(script.hold, gone.signal);
        if (script.slow > 0) await new Promise((resolve) => setTimeout(resolve, script.slow));
      }
    }
    if (gone.signal.aborted) return;
    delta({}, finish_reason);
    if (body.stream_options?.include_usage) {
      send({ ...head, object: "chat.completion.chunk", choices: [], usage });
    }
    response.end("data: [DONE]\n\n");
  }

  function reply(response, status, value) {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(value));
  }

  async function answer(request, response) {
    const url = new URL(request.url, "http://model");
    const name = decodeURIComponent(url.pathname.split("/")[2] ?? "");
    if (request.method === "POST" && url.pathname === "/v1/chat/completions") {
      return complete(request, response);
    }
    if (request.method === "GET" && url.pathname === "/v1/models") {
      return reply(response, 200, { object: "list", data: [{ id: "scripted", object: "model" }] });
    }
    if (request.method === "GET" && url.pathname === "/requests") {
      const key = url.searchParams.get("key") ?? undefined;
      return reply(response, 200, { requests: requests(key), dropped });
    }
    if (request.method === "GET" && url.pathname.startsWith("/held/")) {
      await Promise.race([
        held(name),
        new Promise((resolve) => setTimeout(resolve, MAX_HOLD_MS).unref()),
      ]);
      return reply(response, holdOf(name).reached > 0 ? 200 : 504, {});
    }
    if (request.method === "POST" && url.pathname.startsWith("/release/")) {
      release(name);
      return reply(response, 200, {});
    }
    return reply(response, 404, { error: { message: `no ${request.method} ${url.pathname}` } });
  }

  const server = createServer((request, response) => {
    answer(request, response).catch((error) => {
      if (response.headersSent) response.destroy();
      else reply(response, 400, { error: { message: String(error?.message ?? error) } });
    });
  });
  await new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve);
  });
  const { port } = server.address();
  return {
    port,
    baseUrl: `http://127.0.0.1:${port}/v1`,
    requests,
    release,
    held,
    close: () =>
      new Promise((resolve) => {
        server.close(resolve);
        server.closeAllConnections();
      }),
  };
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const model = await startModel();
  console.log(`model listening on port ${model.port}`);
  process.on("SIGTERM", () => process.exit(0));
}
