// Who a client is: the official SDKs pass a connection token to a Taxiway that wants one, over real
// CLI servers that want none. Runs through Taxiway only.

import { createHash, createHmac } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { configuration } from "../pool.mjs";
import { ask, assert, CallError, RawClient, mode, newId, poll, usePool, within } from "./suite.mjs";

const ANN = "token-of-ann-0123456789";
const BOB = "token-of-bob-0123456789";
const SECRET = "secret-of-the-issuer-0123456789-0123456789";
const sha256 = (text) => createHash("sha256").update(text).digest("hex");
const principal = (name, token) => ({ name, token_sha256: sha256(token) });

const identity = {
  revoke_grace: "1s",
  principals: [principal("ann", ANN), principal("bob", BOB)],
  jwt: [{
    name: "sso", issuer: "https://sso.example", audience: "copilot", secret_file: "jwt.secret",
    leeway: "0s",
  }],
};

if (mode === "taxiway") {
  const { pool, scenario, config } = usePool({
    servers: 2,
    config: (root) => {
      writeFileSync(join(root, "jwt.secret"), SECRET, { mode: 0o600 });
      return { identity };
    },
  });

  /** A JSON Web Token of the issuer, for so many seconds. */
  const jwt = (user, seconds) => {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const claims = {
      iss: "https://sso.example", aud: "copilot", sub: user,
      exp: Math.floor(Date.now() / 1000) + seconds,
    };
    const message = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
    return `${message}.${createHmac("sha256", SECRET).update(message).digest("base64url")}`;
  };
  const known = (connectionToken) => ({
    connection: RuntimeConnection.forUri(pool.address, { connectionToken }),
  });

  scenario("a token lets the SDK in, and a session works", async ({ client: connect }) => {
    for (const token of [ANN, BOB, jwt("carol", 60)]) {
      const client = await connect(pool.address, known(token));
      const session = await client.createSession(config(newId("known")));
      assert.equal(await ask(session, "[[say hello]]"), "hello");
    }
  });

  scenario("a wrong token or none is refused in words", async ({ later }) => {
    for (const [what, token] of [["wrong", "wrong"], ["expired", jwt("carol", -1)], ["none"]]) {
      const client = new CopilotClient(known(token));
      later(() => client.forceStop());
      const refused = within(`start with ${what} token`, 10_000, client.start());
      await assert.rejects(refused, (error) => {
        const text = String(error?.message ?? error);
        assert.match(text, /AUTHENTICATION_(FAILED|REQUIRED)/, what);
        return true;
      });
    }
  });

  scenario("a stranger can do nothing, and hears nothing", async ({ client: connect, later }) => {
    const stranger = await RawClient.open(pool.address);
    later(() => stranger.destroy());
    const client = await connect(pool.address, known(ANN));
    const session = await client.createSession(config(newId("heard-by-ann")));
    for (const method of ["ping", "session.list", "session.send", "session.destroy"]) {
      const call = stranger.call(method, { sessionId: session.sessionId });
      await assert.rejects(call, (error) => error instanceof CallError && error.code === -32001);
    }
    await ask(session, "[[say secret]]");
    assert.deepEqual(stranger.seen, []);
  });

  scenario("who is taken out of the file is out", async ({ client: connect }) => {
    const [ann, bob] = await Promise.all([ANN, BOB].map((t) => connect(pool.address, known(t))));
    const staying = await bob.createSession(config(newId("bob-stays")));
    await ann.createSession(config(newId("ann-goes")));
    const { port, admin, file } = pool.taxiway;
    const write = (principals) => {
      const adminPort = Number(new URL(admin).port);
      const extra = { identity: { ...identity, principals } };
      writeFileSync(
        file, configuration({ port, adminPort, clis: pool.clis, routing: pool.routing, extra }),
      );
    };
    write([principal("bob", BOB)]);
    const startOfAnn = async () => {
      const client = new CopilotClient(known(ANN));
      try {
        return await within("start", 10_000, client.start()).then(() => "let in", String);
      } finally {
        await client.forceStop();
      }
    };
    await poll("Ann to be refused", async () => (await startOfAnn()) !== "let in", 10_000);
    assert.match(await startOfAnn(), /AUTHENTICATION_FAILED/);
    // The SDK leaves a call on a connection that has ended without an answer.
    const gone = () => within("ping", 3_000, ann.ping()).then(() => false, () => true);
    await poll("Ann's connection to be closed", gone, 20_000);
    assert.equal(await ask(staying, "[[say never noticed]]"), "never noticed");
    write(identity.principals);
    await poll("Ann to be let in again", async () => (await startOfAnn()) === "let in", 10_000);
  });
}
