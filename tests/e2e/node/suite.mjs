// What every Node test file shares: one pool a file, SDK clients that are always stopped, and
// the question which CLI has a session open.
//
// It must not hide a failure: a test that fails keeps its pool's logs and prints their ends.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, test } from "node:test";
import { CopilotClient, RuntimeConnection, approveAll } from "@github/copilot-sdk";
import { logTails, metric, mode, poll, routing, startPool } from "../pool.mjs";
import { CallError, RawClient } from "../raw.mjs";

export { assert, metric, mode, poll, routing, startPool, CallError, RawClient };

/** No test may take longer; a turn that waits for nothing takes 0.2 s. */
const TEST_MS = 60_000;
/** `client.stop()` waits for the server's FIN: this is "promptly" on a loaded machine. */
const STOP_MS = 3_000;

/** Rejects if `promise` does not settle in time; names what was waited for. */
export function within(what, ms, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A session id that is unique over runs and readable in logs. */
export const newId = (word) => `${word}-${randomUUID()}`;

/** One pool for a file; `pool` is filled before the first test. */
export function usePool(options = {}) {
  const pool = {};
  before(async () => Object.assign(pool, await startPool(options)), { timeout: TEST_MS });
  after(() => pool.stop?.(), { timeout: TEST_MS });

  const scenario = (name, body, ms = TEST_MS) =>
    test(name, { timeout: ms }, async (t) => {
      const open = [];
      const kit = {
        t,
        /** A started SDK client; `address` defaults to the pool's. */
        client: async (address = pool.address, clientOptions = {}) => {
          const connection = RuntimeConnection.forUri(address);
          const client = new CopilotClient({ connection, ...clientOptions });
          open.push(() => client.forceStop());
          await within("client.start()", 10_000, client.start());
          return client;
        },
        raw: async (address = pool.address) => {
          const client = await RawClient.connect(address);
          open.push(() => client.destroy());
          return client;
        },
        later: (undo) => open.push(undo),
      };
      try {
        await body(kit);
      } catch (error) {
        pool.failed = true;
        t.diagnostic(logTails(pool));
        throw error;
      } finally {
        for (const undo of open.reverse()) await undo();
      }
    });

  /** Session parameters: a model key of its own per session, every permission approved. */
  const config = (sessionId, extra = {}) => ({
    sessionId,
    model: "scripted",
    streaming: true,
    provider: { type: "openai", baseUrl: pool.model.baseUrl, apiKey: sessionId },
    onPermissionRequest: approveAll,
    ...extra,
  });
  /** The same for a raw `session.create` or `session.resume`. */
  const params = (sessionId, extra = {}) => {
    const { onPermissionRequest: _, ...rest } = config(sessionId);
    return { ...rest, requestPermission: false, ...extra };
  };

  /**
   * What the model was told in this session by users, over all its requests; with `text`, as of the
   * last request that has it.
   */
  const told = (sessionId, text = "") => {
    const has = ({ messages }) => messages.some((m) => m.role === "user" && m.text.includes(text));
    const last = pool.model.requests(sessionId).findLast(has);
    return (last?.messages ?? []).filter((m) => m.role === "user").map((m) => promptOf(m.text));
  };

  /** Side connections, one a CLI, that no session is attached to. */
  const sides = new Map();
  after(() => {
    for (const side of sides.values()) side.destroy();
  });
  const sideOf = async (cli) => {
    const old = sides.get(cli);
    if (old && old.closedAt === undefined) return old;
    const side = await RawClient.connect(cli.port);
    sides.set(cli, side);
    return side;
  };
  /** Names of the CLIs that have the session open: `session.mode.get` is answered only there. */
  const owners = async (sessionId, clis = pool.clis) => {
    const names = [];
    for (const cli of clis) {
      const side = await sideOf(cli);
      try {
        const answer = side.call("session.mode.get", { sessionId });
        await within(`mode.get on ${cli.name}`, 5_000, answer);
        names.push(cli.name);
      } catch (error) {
        if (!(error instanceof CallError)) throw error;
        assert.match(error.text, /Session not found/);
      }
    }
    return names;
  };

  return { pool, scenario, config, params, told, owners };
}

/** A prompt without the frame that the CLI puts around it. */
export const promptOf = (text) =>
  text.replace(/^<current_datetime>[^<]*<\/current_datetime>\s*/, "");

/** Resolves with the first event of `type`; listen before what causes it. */
export function nextEvent(session, type, ms = 20_000) {
  let stop;
  const seen = new Promise((resolve) => {
    stop = session.on((event) => event.type === type && resolve(event));
  });
  return within(`${type} of ${session.sessionId}`, ms, seen).finally(() => stop());
}

/** `client.stop()`: no errors, and the server's FIN comes promptly. */
export async function stopped(client) {
  const errors = await within("client.stop()", STOP_MS, client.stop());
  assert.deepEqual(errors.map(String), []);
}

/** The final text of a prompt's turn. */
export async function ask(session, prompt, ms = 20_000) {
  const message = await session.sendAndWait({ prompt }, ms);
  return message?.data.content;
}
