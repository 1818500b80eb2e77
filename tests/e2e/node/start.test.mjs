// The no-config start: what a new user sees who types `taxiway` and nothing else. The real CLI
// is found on PATH through npm's own wrapper; nothing of it is left behind, however Taxiway ends.
//
// It needs the default ports 4321 and 9321, and says so if they are taken.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { approveAll, CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { startModel } from "../model.mjs";
import { cleanEnvironment, launch, metric, poll, status, taxiwayBin } from "../pool.mjs";
import { ask, assert, newId, stopped, within } from "./suite.mjs";

const ADDRESS = "127.0.0.1:4321";
const ADMIN = "http://127.0.0.1:9321";
const TEST_MS = 90_000;

const bin = fileURLToPath(new URL("../node_modules/.bin", import.meta.url));
let model;
before(async () => (model = await startModel()));
after(() => model.close());

/** True if something listens on the port. */
const taken = (port) =>
  new Promise((resolve) => {
    const socket = createConnection({ host: "127.0.0.1", port });
    socket.once("connect", () => (socket.destroy(), resolve(true)));
    socket.once("error", () => resolve(false));
  });

/** Pids of processes started with `root` in their environment, and what they run. */
function processesOf(root) {
  const found = [];
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      if (!readFileSync(`/proc/${pid}/environ`, "latin1").includes(root)) continue;
      // A zombie has ended; it only waits to be collected.
      if (/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "latin1"))) continue;
      found.push({ pid: Number(pid), exe: readlinkSync(`/proc/${pid}/exe`) });
    } catch {
      // Ended while we looked, or another user's.
    }
  }
  return found;
}
const describe = (found) => found.map(({ pid, exe }) => `${pid} ${exe}`).join(", ");
const isCli = ({ exe }) => /copilot/.test(exe);

/** Starts `taxiway` with nothing but a PATH, in an empty directory, with a home of its own. */
async function start(t, path) {
  for (const port of [4321, 9321]) {
    await poll(`port ${port} free`, async () => !(await taken(port)), 20_000, 200);
  }
  const root = mkdtempSync(join(tmpdir(), "taxiway-start-"));
  const work = join(root, "work");
  mkdirSync(work);
  const env = cleanEnvironment(root, { PATH: path, XDG_STATE_HOME: join(root, "state") });
  const taxiway = launch(taxiwayBin(), [], { cwd: work, env, log: join(root, "taxiway.log") });
  t.after(async () => {
    await taxiway.stop();
    const left = processesOf(root);
    for (const { pid } of left) process.kill(pid, "SIGKILL");
    if (left.length === 0) rmSync(root, { recursive: true, force: true, maxRetries: 5 });
    assert.deepEqual(left, [], "processes were left behind");
  });
  await poll("/readyz", async () => {
    assert.equal(taxiway.ended, undefined, taxiway.output());
    return (await status(`${ADMIN}/readyz?pool=1`)) === 200;
  }, 40_000, 50);
  return { root, taxiway };
}

async function connect(t) {
  const client = new CopilotClient({ connection: RuntimeConnection.forUri(ADDRESS) });
  t.after(() => client.forceStop());
  await within("client.start()", 10_000, client.start());
  return client;
}

const config = (sessionId) => ({
  sessionId,
  model: "scripted",
  streaming: true,
  provider: { type: "openai", baseUrl: model.baseUrl, apiKey: sessionId },
  onPermissionRequest: approveAll,
});

const withCli = () => [bin, dirname(process.execPath), "/usr/bin", "/bin"].join(":");

test("no config: three real CLIs, a client works, SIGTERM leaves nothing", { timeout: TEST_MS },
  async (t) => {
    const { root, taxiway } = await start(t, withCli());
    await taxiway.line(/RuntimeConnection\.forUri\("127\.0\.0\.1:4321"\)/);
    await poll("three CLIs up", async () => {
      const up = await Promise.all([1, 2, 3].map((n) =>
        metric(ADMIN, `taxiway_backend_up{backend="managed-${n}"}`)));
      return up.every((value) => value === 1);
    }, 40_000, 100);
    assert.ok(processesOf(root).filter(isCli).length >= 3, describe(processesOf(root)));

    const client = await connect(t);
    const sessions = [];
    for (let i = 0; i < 6; i += 1) {
      sessions.push(await client.createSession(config(newId("start"))));
    }
    for (const session of sessions) assert.equal(await ask(session, "[[say real]]"), "real");

    // One that dies is started again.
    const native = processesOf(root).filter(isCli);
    process.kill(native[0].pid, "SIGKILL");
    await poll("a new CLI process", () => {
      const now = processesOf(root).filter(isCli);
      return now.length >= 3 && !now.some(({ pid }) => pid === native[0].pid);
    }, 30_000, 100);
    // Its sessions are opened again when it is up; until then stop() would wait to detach them.
    await poll("three CLIs up again", async () => {
      const up = await Promise.all([1, 2, 3].map((n) =>
        metric(ADMIN, `taxiway_backend_up{backend="managed-${n}"}`)));
      return up.every((value) => value === 1);
    }, 40_000, 100);
    await ask(sessions.at(-1), "[[say again]]");
    await stopped(client);

    taxiway.kill("SIGTERM");
    const ended = await within("exit", 20_000, taxiway.exited);
    assert.deepEqual(ended, { code: 0, signal: null });
    assert.deepEqual(processesOf(root), []);
  });

test("kill -9 of Taxiway: no CLI of it is left within 3 s", { timeout: TEST_MS }, async (t) => {
  const { root, taxiway } = await start(t, withCli());
  await poll("three CLIs", () => processesOf(root).filter(isCli).length >= 3, 40_000, 100);
  const client = await connect(t);
  const id = newId("orphan");
  const session = await client.createSession(config(id));
  await session.send({ prompt: `[[hold ${id}]]` });
  await model.held(id);
  taxiway.kill("SIGKILL");
  await taxiway.exited;
  let left;
  await poll("no process", () => (left = processesOf(root)).length === 0, 3_000, 50)
    .catch((error) => assert.fail(`${error.message}: ${describe(left)}`));
});

test("no config and no CLI: three simulated servers, said loudly", { timeout: TEST_MS },
  async (t) => {
    const { taxiway } = await start(t, "/nonexistent");
    await taxiway.line(/simulated/i);
    await taxiway.line(/RuntimeConnection\.forUri\("127\.0\.0\.1:4321"\)/);
    const client = await connect(t);
    const session = await client.createSession(config(newId("sim")));
    assert.ok((await ask(session, "hello")).length > 0);
    await stopped(client);
    taxiway.kill("SIGTERM");
    assert.deepEqual(await within("exit", 20_000, taxiway.exited), { code: 0, signal: null });
  });
