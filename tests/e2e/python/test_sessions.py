"""Every feature of a session through the official Python SDK.

Run by `node pool.mjs run`, which starts the real parts and tells their addresses:
TAXIWAY_E2E_ADDRESS (one CLI, or Taxiway), TAXIWAY_E2E_MODEL, TAXIWAY_E2E_BACKENDS.
Only the standard library's unittest; no test may depend on another's session.
"""

import asyncio
import json
import logging
import os
import re
import time
import unittest
import urllib.parse
import urllib.request
import uuid

from copilot import CopilotClient, RuntimeConnection
from copilot.rpc import PermissionDecisionApproveOnce, PermissionDecisionReject
from copilot.session import PermissionHandler
from copilot.tools import define_tool
from pydantic import BaseModel

ADDRESS = os.environ["TAXIWAY_E2E_ADDRESS"]
MODEL = os.environ["TAXIWAY_E2E_MODEL"]
BACKENDS = [int(port) for port in os.environ["TAXIWAY_E2E_BACKENDS"].split(",")]
TAXIWAY = os.environ["TAXIWAY_E2E_MODE"] == "taxiway"

# The SDK logs every error response; these tests ask for many on purpose.
logging.getLogger("copilot").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.ERROR)

TEST_SECONDS = 60
TURN_SECONDS = 20


def new_id(word):
    return f"{word}-{uuid.uuid4()}"


def model(method, path):
    """One request to the scripted model's own interface; blocks."""
    request = urllib.request.Request(MODEL + path, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TURN_SECONDS) as response:
        return json.load(response)


async def told(session_id):
    """What users said in this session, as the model heard it last."""
    query = urllib.parse.urlencode({"key": session_id})
    requests = (await asyncio.to_thread(model, "GET", f"/requests?{query}"))["requests"]
    users = [m["text"] for m in requests[-1]["messages"] if m["role"] == "user"]
    return [re.sub(r"^<current_datetime>.*?</current_datetime>\s*", "", text) for text in users]


async def held(name):
    await asyncio.to_thread(model, "GET", f"/held/{name}")


async def owner(session_id):
    """The port of each CLI that has the session open: only such a one answers mode.get."""
    found = []
    for port in BACKENDS:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        params = {"sessionId": session_id}
        call = {"jsonrpc": "2.0", "id": 1, "method": "session.mode.get", "params": params}
        body = json.dumps(call).encode()
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            message = json.loads(await reader.readexactly(int(head.split(b":")[1])))
            if "method" not in message:
                break
        if "result" in message:
            found.append(port)
        writer.close()
        await writer.wait_closed()
    return found


async def until(what, look, seconds=5.0):
    end = time.monotonic() + seconds
    while not await look():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.02)


def config(session_id, **extra):
    """Session parameters: a model key of its own per session, every permission approved."""
    return {
        "model": "scripted",
        "streaming": True,
        "provider": {"type": "openai", "base_url": f"{MODEL}/v1", "api_key": session_id},
        "on_permission_request": PermissionHandler.approve_all,
        **extra,
    }


class City(BaseModel):
    city: str


class Order(BaseModel):
    id: str


def weather(calls):
    def handler(params, _invocation):
        calls.append(params.city)
        return {"city": params.city, "sky": f"sunny in {params.city}"}

    return define_tool(
        "get_weather", description="Weather of a city", handler=handler, params_type=City
    )


def lookup(calls):
    def handler(params, _invocation):
        calls.append(params.id)
        return f"order {params.id} shipped"

    return define_tool(
        "lookup_order", description="An order by id", handler=handler, params_type=Order
    )


async def ask(session, prompt):
    """The final text of the prompt's turn."""
    event = await session.send_and_wait(prompt, timeout=TURN_SECONDS)
    return event.data.content


class Sessions(unittest.IsolatedAsyncioTestCase):
    def run(self, result=None):
        """Bounds every test in time, whatever it waits for."""
        name = self._testMethodName
        method = getattr(self, name)

        async def bounded():
            async with asyncio.timeout(TEST_SECONDS):
                await method()

        setattr(self, name, bounded)
        return super().run(result)

    async def connect(self):
        client = CopilotClient(connection=RuntimeConnection.for_uri(ADDRESS))
        self.addAsyncCleanup(client.force_stop)
        await client.start()
        return client

    async def create(self, client, session_id, **extra):
        return await client.create_session(session_id=session_id, **config(session_id, **extra))

    async def resume(self, client, session_id, **extra):
        return await client.resume_session(session_id, **config(session_id, **extra))

    async def test_twelve_sessions_on_one_connection(self):
        client = await self.connect()
        ids = [new_id(f"py-twelve-{i}") for i in range(12)]
        sessions = await asyncio.gather(*(self.create(client, i) for i in ids))
        texts = await asyncio.gather(
            *(ask(s, f"[[say answer {i}]]") for i, s in enumerate(sessions))
        )
        self.assertEqual(texts, [f"answer {i}" for i in range(12)])
        owners = [await owner(i) for i in ids]
        for session_id, ports in zip(ids, owners):
            self.assertEqual(len(ports), 1, f"{session_id} is open on {ports}")
        used = {ports[0] for ports in owners}
        self.assertEqual(len(used), 3 if TAXIWAY else 1)
        listed = [s.session_id for s in await client.list_sessions()]
        self.assertEqual(len(listed), len(set(listed)))
        self.assertLessEqual(set(ids), set(listed))
        await client.stop()

        async def closed():
            return not any([await owner(i) for i in ids])

        await until("all closed", closed)

    async def test_streaming(self):
        client = await self.connect()
        session = await self.create(client, new_id("py-stream"))
        deltas = []
        types = []

        def hear(event):
            types.append(event.type.value)
            if event.type.value == "assistant.message_delta":
                deltas.append(event.data.delta_content)

        session.on(hear)
        text = await ask(session, "[[len 120]]")
        self.assertEqual(text, " ".join(f"tok{i}" for i in range(120)))
        self.assertEqual("".join(deltas), text)
        self.assertEqual(types.count("session.idle"), 1)
        await client.stop()

    async def test_tools_one_chained_parallel(self):
        client = await self.connect()
        cities, orders = [], []
        session = await self.create(
            client, new_id("py-tools"), tools=[weather(cities), lookup(orders)]
        )
        prompt = '[[tool get_weather {"city":"Paris"}]] [[tool lookup_order {"id":"7"}]]'
        prompt += " [[results]]"
        first, second = json.loads(await ask(session, prompt))
        self.assertIn("sunny in Paris", first)
        self.assertIn("order 7 shipped", second)
        prompt = '[[ptool get_weather {"city":"Rome"}]] [[ptool lookup_order {"id":"42"}]]'
        prompt += " [[results]]"
        results = json.loads(await ask(session, prompt))
        self.assertEqual(len(results), 2)
        self.assertTrue(any("sunny in Rome" in text for text in results), results)
        self.assertTrue(any("order 42 shipped" in text for text in results), results)
        self.assertEqual((cities, orders), (["Paris", "Rome"], ["7", "42"]))
        await client.stop()

    async def test_permissions(self):
        client = await self.connect()
        asked = []

        def decide(request, _invocation):
            asked.append(request.kind)
            if "good" in request.full_command_text:
                return PermissionDecisionApproveOnce()
            return PermissionDecisionReject(feedback="not here")

        session = await self.create(client, new_id("py-permit"), on_permission_request=decide)

        def shell(word):
            command = f'{{"command":"touch {word} && echo made-{word}","description":"x"}}'
            return f"[[tool bash {command}]] [[results]]"

        (good,) = json.loads(await ask(session, shell("good")))
        self.assertIn("made-good", good)
        (bad,) = json.loads(await ask(session, shell("bad")))
        self.assertNotIn("made-bad", bad)
        self.assertIn("not here", bad)
        self.assertEqual(len(asked), 2)
        await client.stop()

    async def test_hooks(self):
        client = await self.connect()
        cities, seen = [], []

        def pre(hook_input, _invocation):
            seen.append("pre")
            if hook_input["toolArgs"]["city"] == "Hell":
                return {"permissionDecision": "deny", "permissionDecisionReason": "too hot"}
            return {"permissionDecision": "allow"}

        session = await self.create(
            client,
            new_id("py-hooks"),
            tools=[weather(cities)],
            hooks={
                "on_pre_tool_use": pre,
                "on_post_tool_use": lambda *_: seen.append("post"),
                "on_session_start": lambda *_: seen.append("start"),
            },
        )
        await ask(session, '[[tool get_weather {"city":"Bonn"}]]')
        prompt = '[[tool get_weather {"city":"Hell"}]] [[results]]'
        (denied,) = json.loads(await ask(session, prompt))
        self.assertIn("too hot", denied)
        self.assertEqual(cities, ["Bonn"])
        self.assertEqual(seen, ["start", "pre", "post", "pre"])
        await client.stop()

    async def test_user_input(self):
        client = await self.connect()
        questions = []

        def answer(request, _invocation):
            questions.append(request["question"])
            return {"answer": "blue, no, yellow", "wasFreeform": True}

        session = await self.create(client, new_id("py-input"), on_user_input_request=answer)
        (result,) = json.loads(await ask(session, "[[ask Which colour?]] [[results]]"))
        self.assertIn("blue, no, yellow", result)
        self.assertEqual(questions, ["Which colour?"])
        await client.stop()

    async def test_abort(self):
        client = await self.connect()
        session_id = new_id("py-abort")
        session = await self.create(client, session_id)
        idle = asyncio.get_running_loop().create_future()

        def hear(event):
            if event.type.value == "session.idle" and not idle.done():
                idle.set_result(event)

        stop_hearing = session.on(hear)
        await session.send(f"[[len 5]] [[hold {session_id}]]")
        await held(session_id)
        await session.abort()
        self.assertTrue((await idle).data.aborted)
        stop_hearing()
        self.assertEqual(await ask(session, "[[say still here]]"), "still here")
        await client.stop()

    async def test_messages_list_metadata_last_id(self):
        client = await self.connect()
        session_id = new_id("py-read")
        session = await self.create(client, session_id)
        await ask(session, "first [[say one]]")
        await ask(session, "second [[say two]]")
        said = [
            event.data.content
            for event in await session.get_events()
            if event.type.value in ("user.message", "assistant.message")
        ]
        self.assertEqual(said, ["first [[say one]]", "one", "second [[say two]]", "two"])
        listed = [s for s in await client.list_sessions() if s.session_id == session_id]
        self.assertEqual(len(listed), 1)
        metadata = await client.get_session_metadata(session_id)
        self.assertEqual(metadata.session_id, session_id)
        self.assertIsNone(await client.get_session_metadata(new_id("nobody")))
        self.assertEqual(await client.get_last_session_id(), session_id)
        await client.stop()

    async def test_resume(self):
        client = await self.connect()
        session_id = new_id("py-resume")
        session = await self.create(client, session_id, tools=[weather([])])
        await ask(session, "alpha")
        await client.stop()

        other = await self.connect()
        cities = []
        again = await self.resume(other, session_id, tools=[weather(cities)])
        await ask(again, 'beta [[tool get_weather {"city":"Kyiv"}]]')
        self.assertEqual(cities, ["Kyiv"])
        self.assertEqual(len(await owner(session_id)), 1)
        self.assertEqual((await told(session_id))[0], "alpha")
        await again.disconnect()
        with self.assertRaisesRegex(Exception, "Session not found"):
            await self.resume(other, new_id("nobody"))
        await other.stop()

    async def test_two_clients_on_one_session(self):
        alice, bob = await self.connect(), await self.connect()
        session_id = new_id("py-shared")
        hers = await self.create(alice, session_id, tools=[weather([])])
        await ask(hers, "I am Alice")
        with self.assertRaisesRegex(Exception, "External tool name clash: get_weather"):
            await self.resume(bob, session_id, tools=[weather([])])
        his = await self.resume(bob, session_id, tools=[lookup([])])
        self.assertEqual(len(await owner(session_id)), 1)
        heard = {"alice": [], "bob": []}
        hers.on(lambda event: heard["alice"].append((event.type.value, event.id)))
        his.on(lambda event: heard["bob"].append((event.type.value, event.id)))
        await ask(his, 'I am Bob [[tool get_weather {"city":"Bern"}]]')

        def turn(name):
            # Before the prompt there may be events of a client's own attaching.
            types = [kind for kind, _ in heard[name]]
            return heard[name][types.index("user.message") :] if "user.message" in types else []

        async def ended():
            return all("session.idle" in dict(turn(name)) for name in heard)

        await until("both heard the turn's end", ended)
        self.assertGreater(len(turn("bob")), 20)
        self.assertEqual(turn("alice"), turn("bob"))
        await alice.stop()
        self.assertEqual(await ask(his, "[[say alone]]"), "alone")
        await bob.stop()

    async def test_delete(self):
        client = await self.connect()
        session_id = new_id("py-delete")
        session = await self.create(client, session_id)
        await ask(session, "hello")
        await session.disconnect()
        await client.delete_session(session_id)
        self.assertNotIn(session_id, [s.session_id for s in await client.list_sessions()])
        with self.assertRaisesRegex(Exception, "Session not found"):
            await self.resume(client, session_id)
        with self.assertRaisesRegex(Exception, "Session file not found"):
            await client.delete_session(session_id)
        await client.stop()

    async def test_calls_outside_a_session(self):
        client = await self.connect()
        self.assertEqual((await client.ping("hi")).message, "pong: hi")
        self.assertEqual((await client.get_status()).version, "1.0.102")
        self.assertFalse((await client.get_auth_status()).isAuthenticated)
        with self.assertRaisesRegex(Exception, "Not authenticated"):
            await client.list_models()
        await client.stop()


if __name__ == "__main__":
    unittest.main(verbosity=2)
