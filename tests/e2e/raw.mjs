// A tiny framed JSON-RPC client for what the SDKs hide: ids, order, error objects, FIN.
//
// It must not be clever: no retries, no reconnects, no defaults in params.

import { createConnection } from "node:net";

/** Notifications kept; the oldest go first. */
const MAX_SEEN = 20_000;

export const frame = (message) => {
  const body = Buffer.from(typeof message === "string" ? message : JSON.stringify(message));
  return Buffer.concat([Buffer.from(`Content-Length: ${body.length}\r\n\r\n`), body]);
};

/** An error object that a call was answered with. */
export class CallError extends Error {
  constructor(method, error) {
    super(`${method}: ${error.code} ${error.message}`);
    this.code = error.code;
    this.text = error.message;
    this.data = error.data;
  }
}

export class RawClient {
  /** Responses without a call of this client waiting: a second answer, or a stray one. */
  stray = [];
  /** Notifications and requests of the server, in order. */
  seen = [];
  /** `performance.now()` when the peer's end of stream or an error came. */
  closedAt = undefined;
  #socket;
  #buffer = Buffer.alloc(0);
  #next = 1;
  #pending = new Map();
  #watchers = new Set();
  /** Answers server requests: `(method, params) => result`; undefined leaves them open. */
  onRequest = () => undefined;

  /** Connects to `host:port` or a loopback port. */
  static async open(address) {
    const [host, port] = String(address).includes(":")
      ? String(address).split(":")
      : ["127.0.0.1", address];
    const socket = createConnection({ host, port: Number(port), noDelay: true });
    await new Promise((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", reject);
    });
    return new RawClient(socket);
  }

  /** Connects and does the handshake. */
  static async connect(address, params = {}) {
    const client = await RawClient.open(address);
    await client.call("connect", params);
    return client;
  }

  constructor(socket) {
    this.#socket = socket;
    this.closed = new Promise((resolve) => {
      const end = () => {
        this.closedAt ??= performance.now();
        for (const { method, reject } of this.#pending.values()) {
          reject(new Error(`${method}: connection closed before the answer`));
        }
        this.#pending.clear();
        this.#wake();
        resolve();
      };
      socket.on("end", end);
      socket.on("close", end);
      socket.on("error", end);
    });
    socket.on("data", (chunk) => this.#take(chunk));
  }

  #take(chunk) {
    this.#buffer = Buffer.concat([this.#buffer, chunk]);
    for (;;) {
      const headEnd = this.#buffer.indexOf("\r\n\r\n");
      if (headEnd < 0) return;
      const head = this.#buffer.subarray(0, headEnd).toString("latin1");
      const length = Number(/^Content-Length: (\d+)$/.exec(head)?.[1]);
      if (!Number.isInteger(length)) {
        this.#socket.destroy(new Error(`not a frame head: ${JSON.stringify(head)}`));
        return;
      }
      const end = headEnd + 4 + length;
      if (this.#buffer.length < end) return;
      const body = this.#buffer.subarray(headEnd + 4, end).toString("utf8");
      this.#buffer = this.#buffer.subarray(end);
      this.#receive(JSON.parse(body));
    }
  }

  #receive(message) {
    if (message.method === undefined) {
      const call = this.#pending.get(message.id);
      if (call === undefined) {
        this.stray.push(message);
      } else {
        this.#pending.delete(message.id);
        if (message.error) {
          const error = new CallError(call.method, message.error);
          error.at = performance.now();
          call.reject(error);
        } else {
          call.resolve(message.result);
        }
      }
    } else {
      this.seen.push(message);
      if (this.seen.length > MAX_SEEN) this.seen.shift();
      if (message.id !== undefined) {
        Promise.resolve(this.onRequest(message.method, message.params)).then((result) => {
          if (result !== undefined) this.write({ jsonrpc: "2.0", id: message.id, result });
        });
      }
    }
    this.#wake();
  }

  #wake() {
    for (const look of [...this.#watchers]) look();
  }

  /** Writes one message, several in one TCP write, or bytes as they are. */
  write(...messages) {
    this.#socket.write(
      Buffer.concat(messages.map((m) => (Buffer.isBuffer(m) ? m : frame(m)))),
    );
  }

  /** Registers a call without writing it: `{ message, answer }`. */
  prepare(method, params, id = this.#next++) {
    const answer = new Promise((resolve, reject) => {
      this.#pending.set(id, { method, resolve, reject });
    });
    // A test may look at an answer late; a rejection until then is not unhandled.
    answer.catch(() => undefined);
    return { message: { jsonrpc: "2.0", id, method, ...(params && { params }) }, answer };
  }

  call(method, params) {
    const { message, answer } = this.prepare(method, params);
    this.write(message);
    return answer;
  }

  /** Events of one session, in the order received. */
  events(sessionId) {
    return this.seen
      .filter((m) => m.method === "session.event" && m.params?.sessionId === sessionId)
      .map((m) => m.params.event);
  }

  /** Resolves with `look()`'s first value that is neither false nor undefined. */
  until(what, look, ms = 20_000) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#watchers.delete(check);
        reject(new Error(`${what}: not seen within ${ms} ms`));
      }, ms);
      const check = () => {
        const value = look(this);
        if (value === undefined || value === false) return;
        clearTimeout(timer);
        this.#watchers.delete(check);
        resolve(value);
      };
      this.#watchers.add(check);
      check();
    });
  }

  /** Resolves with the first event of `type` after index `from` of `seen`. */
  event(sessionId, type, from = 0, ms = 20_000) {
    return this.until(`${type} of ${sessionId}`, () =>
      this.seen
        .slice(from)
        .find(
          (m) =>
            m.method === "session.event" &&
            m.params?.sessionId === sessionId &&
            m.params.event?.type === type,
        )?.params.event, ms);
  }

  /** Half-closes, as Node's `client.stop()` does; resolves when the peer has closed too. */
  end() {
    this.#socket.end();
    return this.closed;
  }

  destroy() {
    this.#socket.destroy();
  }
}
