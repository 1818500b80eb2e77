// Starts the real parts: a scripted model, real CLI servers, and Taxiway in front if asked.
//
// Everything lives in one temporary directory (homes, logs, configuration) and is ended by
// process id. It must not touch a user's ~/.copilot, use a fixed port, or leave a process.
//
//   node pool.mjs run COMMAND…   runs COMMAND with the pool's addresses in its environment
//
// Environment: TAXIWAY_E2E_MODE=direct|taxiway, TAXIWAY_E2E_ROUTING=sticky|shared-storage,
// TAXIWAY_BIN, TAXIWAY_TEST_CLI (the CLI's own binary), TAXIWAY_E2E_KEEP=1 keeps the directory.

import { spawn } from "node:child_process";
import {
  createWriteStream, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { startModel } from "./model.mjs";

const here = dirname(fileURLToPath(import.meta.url));

/** Time for a process to say that it is ready; a CLI needs 1 s idle, more on a loaded machine. */
const START_MS = 30_000;
/** Time for a process to end after SIGTERM, before SIGKILL. */
const STOP_MS = 5_000;

export const mode = process.env.TAXIWAY_E2E_MODE ?? "direct";
if (mode !== "direct" && mode !== "taxiway") throw new Error(`TAXIWAY_E2E_MODE=${mode}?`);
export const routing = process.env.TAXIWAY_E2E_ROUTING ?? "sticky";
if (routing !== "sticky" && routing !== "shared-storage") {
  throw new Error(`TAXIWAY_E2E_ROUTING=${routing}?`);
}

/** The CLI's native binary: `node_modules/.bin/copilot` is a wrapper that takes no signals. */
export function nativeCli() {
  if (process.env.TAXIWAY_TEST_CLI) return process.env.TAXIWAY_TEST_CLI;
  for (const kind of process.platform === "linux" ? ["linux", "linuxmusl"] : [process.platform]) {
    const found = join(here, `node_modules/@github/copilot-${kind}-${process.arch}/copilot`);
    if (existsSync(found)) return found;
  }
  throw new Error("no CLI: run `npm ci` in tests/e2e, or set TAXIWAY_TEST_CLI");
}

export const taxiwayBin = () =>
  process.env.TAXIWAY_BIN ?? resolve(here, "../../target/debug/taxiway");

/** A loopback port that was free a moment ago. */
export async function freePort() {
  for (;;) {
    const port = await new Promise((done, fail) => {
      const probe = createServer();
      probe.once("error", fail);
      probe.listen(0, "127.0.0.1", () => {
        const { port } = probe.address();
        probe.close(() => done(port));
      });
    });
    // The kernel may well name the same port twice once its first listener is closed.
    if (!givenPorts.has(port)) {
      givenPorts.add(port);
      return port;
    }
  }
}

const givenPorts = new Set();

/** Polls `look` until it gives a value that is neither false nor undefined. */
export async function poll(what, look, ms, every = 20) {
  const end = performance.now() + ms;
  for (;;) {
    const value = await look();
    if (value !== undefined && value !== false) return value;
    if (performance.now() > end) throw new Error(`${what}: not within ${ms} ms`);
    await new Promise((wake) => setTimeout(wake, every));
  }
}

/** Nothing of the caller's login, proxy or CLI settings reaches the processes under test. */
export function cleanEnvironment(home, extra = {}) {
  const env = {};
  for (const [name, value] of Object.entries(process.env)) {
    if (/^(COPILOT_|TAXIWAY_|GH_|GITHUB_|OTEL_|XDG_)/.test(name)) continue;
    if (/^(https?|all)_proxy$/i.test(name)) continue;
    env[name] = value;
  }
  return { ...env, HOME: home, NO_COLOR: "1", ...extra };
}

const running = new Set();
const killAll = () => {
  for (const child of running) child.kill("SIGKILL");
};
process.on("exit", killAll);
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.once(signal, () => {
    killAll();
    process.exit(1);
  });
}

/** A child with its output in a log file; `exited` resolves with `{ code, signal }`. */
export function launch(command, args, { cwd, env, log }) {
  const child = spawn(command, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
  const file = createWriteStream(log, { flags: "a" });
  let text = "";
  const watchers = new Set();
  const take = (chunk) => {
    file.write(chunk);
    text = (text + chunk).slice(-200_000);
    for (const look of [...watchers]) look();
  };
  child.stdout.on("data", take);
  child.stderr.on("data", take);
  running.add(child);
  const launched = {
    pid: child.pid,
    log,
    ended: undefined,
    output: () => text,
    kill: (signal) => child.kill(signal),
    /** Resolves with the match of `pattern` in what it has printed. */
    line: (pattern, ms = START_MS) =>
      new Promise((done, fail) => {
        const end = (settle, value) => {
          clearTimeout(timer);
          watchers.delete(look);
          settle(value);
        };
        const complain = (why) => fail(new Error(`${command} ${why}; it printed:\n${text}`));
        const timer = setTimeout(() => end(complain, `did not print ${pattern}`), ms);
        const look = () => {
          const match = pattern.exec(text);
          if (match) end(done, match);
          else if (launched.ended) end(complain, `ended: ${JSON.stringify(launched.ended)}`);
        };
        watchers.add(look);
        look();
      }),
    stop: async (signal = "SIGTERM") => {
      if (launched.ended) return launched.ended;
      child.kill(signal);
      // A stopped process takes no SIGTERM before it is continued.
      child.kill("SIGCONT");
      const timer = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
      const ended = await launched.exited;
      clearTimeout(timer);
      return ended;
    },
  };
  launched.exited = new Promise((done) => {
    const end = (value) => {
      launched.ended ??= value;
      running.delete(child);
      file.end();
      for (const look of [...watchers]) look();
      done(launched.ended);
    };
    child.once("error", (error) => end({ code: null, signal: null, error: error.message }));
    child.once("close", (code, signal) => end({ code, signal }));
  });
  return launched;
}

/** One real CLI server that can be killed and started again on its port. */
async function startCli(name, root, home) {
  const work = join(root, "work");
  for (const path of [home, work]) mkdirSync(path, { recursive: true });
  const log = join(root, `${name}.log`);
  /** `paused`: stopped by SIGSTOP; such a server answers nothing. `pidFile`: for fence commands. */
  const pidFile = join(root, `${name}.pid`);
  const cli = { name, home, log, pidFile, port: 0, process: undefined, paused: false };
  cli.start = async () => {
    const env = cleanEnvironment(home, { COPILOT_HOME: join(home, "copilot") });
    const args = ["--headless", "--no-auto-update", "--port", String(cli.port)];
    cli.process = launch(nativeCli(), args, { cwd: work, env, log });
    const [, port] = await cli.process.line(/CLI server listening on port (\d+)/);
    cli.port = Number(port);
    cli.paused = false;
    writeFileSync(pidFile, String(cli.process.pid));
    return cli;
  };
  cli.kill = async () => {
    cli.process.kill("SIGKILL");
    await cli.process.exited;
  };
  cli.pause = () => {
    cli.paused = true;
    cli.process.kill("SIGSTOP");
  };
  cli.wake = () => {
    cli.process.kill("SIGCONT");
    cli.paused = false;
  };
  return cli.start();
}

/** A value as TOML: strings, numbers and lists are written as in JSON, tables are not. */
function toml(value) {
  if (Array.isArray(value)) return `[${value.map(toml).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{ ${Object.entries(value).map(([key, v]) => `${key} = ${toml(v)}`).join(", ")} }`;
}

/** The configuration of a Taxiway in front of `clis`; `extra` adds to tables by name. */
export function configuration({ port, adminPort, clis, routing, extra = {} }) {
  const tables = {
    listener: { address: `127.0.0.1:${port}` },
    admin: { address: `127.0.0.1:${adminPort}` },
    routing: { mode: routing, key: "session" },
    health: {
      interval: "500ms", timeout: "500ms", unhealthy_after: 2, healthy_after: 1, slow_start: "0s",
    },
    drain: { timeout: "30s", accept_grace: "1s" },
  };
  for (const [name, keys] of Object.entries(extra)) tables[name] = { ...tables[name], ...keys };
  const lines = [];
  for (const [name, keys] of Object.entries(tables)) {
    lines.push(`[${name}]`);
    for (const key of Object.keys(keys)) lines.push(`${key} = ${toml(keys[key])}`);
    lines.push("");
  }
  for (const cli of clis) {
    lines.push("[[backends]]", `name = "${cli.name}"`, `address = "127.0.0.1:${cli.port}"`, "");
  }
  return lines.join("\n");
}

async function startTaxiway(root, clis, options) {
  const port = await freePort();
  const adminPort = await freePort();
  const file = join(root, "taxiway.toml");
  writeFileSync(file, configuration({ port, adminPort, clis, ...options }));
  const env = cleanEnvironment(join(root, "taxiway-home"));
  const log = join(root, "taxiway.log");
  const process_ = launch(taxiwayBin(), ["run", "-c", file], { cwd: root, env, log });
  const admin = `http://127.0.0.1:${adminPort}`;
  await poll("taxiway /readyz", async () => {
    if (process_.ended) throw new Error(`taxiway ended; it printed:\n${process_.output()}`);
    return (await status(`${admin}/readyz?pool=1`)) === 200;
  }, START_MS);
  return { port, admin, file, process: process_ };
}

/** The HTTP status of a GET, or undefined if nothing answers. */
export async function status(url) {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(2_000) });
    await response.arrayBuffer();
    return response.status;
  } catch {
    return undefined;
  }
}

/** One sample of the metrics page, such as `taxiway_backend_up{backend="cli-1"}`. */
export async function metric(admin, sample) {
  const response = await fetch(`${admin}/metrics`, { signal: AbortSignal.timeout(2_000) });
  for (const line of (await response.text()).split("\n")) {
    if (line.startsWith(`${sample} `)) return Number(line.slice(sample.length + 1));
  }
  return undefined;
}

/**
 * Starts a pool. `direct`: one CLI and nothing in front; `taxiway`: `servers` CLIs behind it,
 * each with its own home (`sticky`) or all with one (`shared-storage`). `config` adds to tables
 * of Taxiway's configuration, or is a function that gives them for the pool's directory.
 */
export async function startPool(options = {}) {
  const kind = options.mode ?? mode;
  const route = options.routing ?? routing;
  const servers = options.servers ?? (kind === "direct" ? 1 : 3);
  const root = mkdtempSync(join(tmpdir(), "taxiway-e2e-"));
  const pool = { mode: kind, routing: route, root, failed: false, clis: [], taxiway: undefined };
  pool.stop = async () => {
    await pool.taxiway?.process.stop();
    await Promise.all(pool.clis.map((cli) => cli.process.stop()));
    await pool.model?.close();
    if (process.env.TAXIWAY_E2E_KEEP || pool.failed) console.error(`# kept: ${root}`);
    else rmSync(root, { recursive: true, force: true, maxRetries: 5 });
  };
  try {
    pool.model = await startModel();
    const names = Array.from({ length: servers }, (_, i) => `cli-${i + 1}`);
    pool.clis = await Promise.all(
      names.map((name) =>
        startCli(name, root, join(root, route === "sticky" ? `home-${name}` : "home"))),
    );
    if (kind === "taxiway") {
      const extra = typeof options.config === "function" ? options.config(root) : options.config;
      pool.taxiway = await startTaxiway(root, pool.clis, { routing: route, extra });
      pool.address = `127.0.0.1:${pool.taxiway.port}`;
      pool.admin = pool.taxiway.admin;
    } else {
      pool.address = `127.0.0.1:${pool.clis[0].port}`;
    }
  } catch (error) {
    pool.failed = true;
    await pool.stop();
    throw error;
  }
  return pool;
}

/** Runs a command of `taxiway` against the pool's Taxiway; rejects unless it exits with 0. */
export async function command(pool, args, ms = START_MS) {
  const [verb, ...rest] = args;
  const full = [verb, "-c", pool.taxiway.file, ...rest];
  const env = cleanEnvironment(join(pool.root, "taxiway-home"));
  const log = join(pool.root, "commands.log");
  const child = launch(taxiwayBin(), full, { cwd: pool.root, env, log });
  const timer = setTimeout(() => child.kill("SIGKILL"), ms);
  const ended = await child.exited;
  clearTimeout(timer);
  if (ended.code !== 0) {
    throw new Error(`taxiway ${args.join(" ")}: ${JSON.stringify(ended)}\n${child.output()}`);
  }
  return child.output();
}

/** The persisted events of a session, as they are on disk; undefined if it has no log. */
export function eventsOnDisk(cli, sessionId) {
  const file = join(cli.home, "copilot", "session-state", sessionId, "events.jsonl");
  if (!existsSync(file)) return undefined;
  return readFileSync(file, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

/** The end of every log, for a failed test's report. */
export function logTails(pool, lines = 30) {
  const logs = [join(pool.root, "taxiway.log"), ...pool.clis.map((cli) => cli.log)];
  return logs
    .filter((log) => existsSync(log))
    .map((log) => `--- ${log}\n${readFileSync(log, "utf8").split("\n").slice(-lines).join("\n")}`)
    .join("\n");
}

async function main() {
  const [verb, command, ...args] = process.argv.slice(2);
  if (verb !== "run" || !command) {
    console.error("usage: node pool.mjs run COMMAND…");
    process.exit(2);
  }
  const pool = await startPool();
  const env = {
    ...process.env,
    TAXIWAY_E2E_ADDRESS: pool.address,
    TAXIWAY_E2E_MODEL: `http://127.0.0.1:${pool.model.port}`,
    TAXIWAY_E2E_BACKENDS: pool.clis.map((cli) => cli.port).join(","),
    TAXIWAY_E2E_MODE: pool.mode,
  };
  const child = spawn(command, args, { stdio: ["ignore", "inherit", "inherit"], env });
  running.add(child);
  const code = await new Promise((done) => {
    child.once("error", (error) => {
      console.error(`${command}: ${error.message}`);
      done(127);
    });
    child.once("exit", (exit, signal) => done(signal ? 1 : exit));
  });
  running.delete(child);
  pool.failed = code !== 0;
  if (pool.failed) console.error(logTails(pool));
  await pool.stop();
  process.exit(code);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) await main();
