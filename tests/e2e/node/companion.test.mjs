// The official SDK, which speaks no TLS, through `taxiway companion` over mTLS to Taxiway and real
// CLI servers; and certificates of both sides replaced while turns run.
//
// Runs only through Taxiway. Needs `openssl`.

import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cleanEnvironment, freePort, launch, taxiwayBin } from "../pool.mjs";
import { ask, assert, metric, newId, poll, usePool, within } from "./suite.mjs";

const openssl = (folder, ...args) =>
  execFileSync("openssl", args, { cwd: folder, stdio: ["ignore", "ignore", "pipe"] });

/** `NAME.pem` and `NAME.key`, self-signed. */
function authority(folder, name) {
  openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
    "-days", "2", "-subj", `/CN=${name}`, "-keyout", `${name}.key`, "-out", `${name}.pem`);
}

/** `NAME.pem` and `NAME.key` for localhost, of an authority; each put there whole. */
function certificate(folder, ca, name) {
  openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
    "-subj", `/CN=${name}`, "-keyout", `${name}.key.new`, "-out", `${name}.csr`);
  writeFileSync(join(folder, `${name}.ext`), "subjectAltName=DNS:localhost");
  openssl(folder, "x509", "-req", "-in", `${name}.csr`, "-CA", `${ca}.pem`, "-CAkey", `${ca}.key`,
    "-CAcreateserial", "-days", "2", "-extfile", `${name}.ext`, "-out", `${name}.pem.new`);
  chmodSync(join(folder, `${name}.key.new`), 0o600);
  for (const kind of ["key", "pem"]) {
    renameSync(join(folder, `${name}.${kind}.new`), join(folder, `${name}.${kind}`));
  }
}

let folder;
const { pool, scenario, config, told } = usePool({
  mode: "taxiway",
  servers: 2,
  config: (root) => {
    folder = join(root, "tls");
    mkdirSync(folder);
    authority(folder, "ca");
    certificate(folder, "ca", "server");
    certificate(folder, "ca", "client");
    const file = (name) => join(folder, name);
    return {
      "listener.tls": {
        cert: file("server.pem"), key: file("server.key"), client_ca: file("ca.pem"),
      },
    };
  },
});

/** A companion in front of the pool, ended with the scenario. */
async function companion(kit, identity = "client") {
  const [port, health] = [await freePort(), await freePort()];
  const args = [
    "companion", "--listen", `127.0.0.1:${port}`, "--to", `localhost:${pool.taxiway.port}`,
    "--health", `127.0.0.1:${health}`, "--ca", join(folder, "ca.pem"),
    "--cert", join(folder, `${identity}.pem`), "--key", join(folder, `${identity}.key`),
  ];
  const env = cleanEnvironment(join(pool.root, "taxiway-home"));
  const log = join(pool.root, `companion-${identity}.log`);
  const child = launch(taxiwayBin(), args, { cwd: pool.root, env, log });
  kit.later(() => child.stop());
  await child.line(/companion listens on/);
  const ready = () => fetch(`http://127.0.0.1:${health}/readyz`).then(({ status }) => status);
  return { address: `127.0.0.1:${port}`, child, ready };
}

const notAfter = () =>
  metric(pool.admin, 'taxiway_tls_certificate_not_after_timestamp_seconds{cert="listener"}');

scenario("the SDK works through the companion, and stops promptly", async (kit) => {
  const { address, ready } = await companion(kit);
  assert.equal(await ready(), 200);
  const client = await kit.client(address);
  const session = await client.createSession(config(newId("mtls")));
  assert.equal(await ask(session, "[[say over mTLS]]"), "over mTLS");
  const long = "so ".repeat(50_000).trim();
  assert.equal(await ask(session, `[[say short]] ${long}`), "short");
  assert.equal(told(session.sessionId).length, 2);
  await session.disconnect();
  await within("client.stop()", 3_000, client.stop());
  await poll("no connection is left", async () =>
    (await metric(pool.admin, "taxiway_downstream_connections")) === 0, 5_000);
});

scenario("certificates of both sides change under load, with no error", async (kit) => {
  const { address, child } = await companion(kit);
  assert.ok((await notAfter()) > Date.now() / 1000);
  const seen = { errors: [], turns: 0, clients: 0 };
  let over = false;
  const watch = (session) => session.on(({ type, data }) => {
    if (type === "session.error") seen.errors.push(data.message);
  });
  // One client stays, others come and go.
  const steady = await kit.client(address);
  const session = await steady.createSession(config(newId("steady")));
  watch(session);
  const staying = (async () => {
    while (!over) {
      const text = `turn ${seen.turns} ${"on ".repeat(20)}`.trim();
      assert.equal(await ask(session, `[[slow 10]] [[say ${text}]]`), text);
      seen.turns += 1;
    }
  })();
  const coming = (async () => {
    while (!over) {
      const client = await kit.client(address);
      const short = await client.createSession(config(newId("short")));
      watch(short);
      assert.equal(await ask(short, "[[say hello]]"), "hello");
      await short.disconnect();
      await within("client.stop()", 3_000, client.stop());
      seen.clients += 1;
    }
  })();
  const work = Promise.all([staying, coming]);
  work.catch(() => undefined);
  const reloads = () => metric(pool.admin, 'taxiway_config_reloads_total{result="success"}');
  const rereads = () => child.output().split("certificates read again").length;
  for (let i = 0; i < 4; i += 1) {
    const [before, read, clients] = [(await reloads()) ?? 0, rereads(), seen.clients];
    certificate(folder, "ca", "server");
    certificate(folder, "ca", "client");
    await Promise.race([work, poll("new certificates, and clients with them", async () =>
      (await reloads()) > before && rereads() > read && seen.clients >= clients + 2, 40_000)]);
  }
  over = true;
  await within("the last turns", 30_000, work);
  assert.deepEqual(seen.errors, []);
  kit.t.diagnostic(`${seen.turns} turns of one client, ${seen.clients} clients that came and went`);
  const text = pool.taxiway.process.output();
  assert.doesNotMatch(text, /not_admitted/);
}, 180_000);

scenario("a certificate of another authority is refused, and its client closed", async (kit) => {
  authority(folder, "other");
  certificate(folder, "other", "stranger");
  const { address, child, ready } = await companion(kit, "stranger");
  assert.equal(await ready(), 503);
  // Not an SDK: a Node SDK whose connection ends while it starts waits for its own time-out.
  const refused = assert.rejects(kit.raw(address), /closed before the answer/);
  await within("the end of the connection", 5_000, refused);
  await child.line(/refuses our certificate/);
  const failures = 'taxiway_auth_failures_total{reason="certificate"}';
  assert.ok((await metric(pool.admin, failures)) >= 1);
});
