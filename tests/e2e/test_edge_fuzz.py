"""Random bytes and mutated requests at the port: whatever comes, nobody is answered with a 500, nothing is left behind, and
the next client is served.

The seeds are fixed. More of it, by hand: `TIDEGATE_FUZZ_ROUNDS=100000 pytest tests/e2e/test_edge_fuzz.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from pool import HELLO, INSTANT, Gateway, gateway, until

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUNDS = int(os.environ.get("TIDEGATE_FUZZ_ROUNDS", "400"))
"""For each of the ways below."""
AT_ONCE = 16
PATIENCE_S = 0.3
PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"-1",
    ),
    *(
        b"transfer-encoding: chunked\r\n",
        b"content-length: 18446744073709551616\r\n",
        b"content-length: 0\r\n",
    ),
    *(
        b"expect: 100-continue\r\n",
        b"upgrade: websocket\r\nconnection: upgrade\r\n",
        b"connection: close\r\n",
    ),
    *(b"HTTP/1.0\r\n", b"HTTP/2.0\r\n", b"x-request-id: \xff\xfe\r\n", b"authorization: Bearer \xc3\x28\r\n"),
    *(b"content-encoding: gzip\r\n", b"x-tidegate-max-ttft-ms: nan\r\n", b"x-forwarded-for: ,,\r\n"),
    *(
        b"traceparent: 00-zz\r\n",
        b"%00",
        b"%ff%fe",
        b"..//",
        b"?",
        b"#",
        b"{",
        b"}",
        b"[" * 2000,
        b'"',
        b"\\ud800",
    ),
    *(b"1e999", b"NaN", b"-0", b"null", b'{"a":' * 300, b"9" * 400, "\u2028".encode(), b"\xed\xa0\x80"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    times = {"request_head_s": 1, "request_s": 2, "idle_client_s": 1, "total_s": 20}
    async with SimWorker(INSTANT) as worker:
        home = tmp_path_factory.mktemp("gateway")
        async with gateway(home, worker, timeouts=times, auth={"master_key": "master"}) as running:
            yield running


def requests(key: str) -> list[bytes]:
    """What is mutated: a request of each kind."""
    head = f"host: h\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
    admin = "host: h\r\nconnection: close\r\nauthorization: Bearer master\r\n"
    chat = {"model": "llama", "messages": [{"role": "user", "content": "High water?"}], "max_tokens": 2}
    bodies = {
        "/v1/chat/completions": [
            chat,
            {**chat, "stream": True, "routing": {"max_ttft_ms": 9000, "only": ["worker-1"]}},
        ],
        "/v1/completions": [{"model": "llama:floor", "prompt": ["a", "b"], "max_tokens": 1}],
        "/v1/embeddings": [{"model": "llama", "input": "a"}],
        "/admin/explain": [{"request": chat, "headers": {"x-tidegate-regions": "a,b"}}],
        "/admin/tenants": [
            {"name": "acme", "policy": {"budgets": {"day": "1.50"}, "networks": ["10.0.0.0/8"]}}
        ],
        "/admin/nodes": [{"name": "gpu-7", "url": "http://127.0.0.1:9", "models": ["llama"], "lease_s": 1}],
    }
    made = []
    for path, contents in bodies.items():
        for content in contents:
            body = json.dumps(content).encode()
            lines = f"POST {path} HTTP/1.1\r\n{admin if path.startswith('/admin') else head}"
            made.append(f"{lines}content-length: {len(body)}\r\n\r\n".encode() + body)
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
            made.append(f"{lines}transfer-encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n")
    ours = ("/v1/models", "/v1/models/llama", "/v1/usage?from=7d&by=day", "/health/ready", "/metrics")
    theirs = ("/admin/tenants?most=5", "/admin/audit?before=1", "/admin/docs", "/admin/nodes/worker-1")
    made += [f"GET {path} HTTP/1.1\r\n{head}\r\n".encode() for path in ours]
    return made + [f"GET {path} HTTP/1.1\r\n{admin}\r\n".encode() for path in theirs]


def random_bytes(dice: random.Random, _: list[bytes]) -> bytes:
    return dice.randbytes(dice.choice((1, 7, 100, 5000)))


def mutated(dice: random.Random, whole: list[bytes]) -> bytes:
    """A request in which a few bytes are others, missing, doubled, or something else altogether."""
    sent = bytearray(dice.choice(whole))
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(sent) + 1)
        upto = min(len(sent), at + dice.choice((0, 1, 1, 4, 30)))
        match dice.randrange(4):
            case 0:
                sent[at:upto] = dice.randbytes(upto - at)
            case 1:
                sent[at:upto] = b""
            case 2:
                sent[at:at] = sent[at:upto] * dice.choice((1, 2, 50))
            case 3:
                sent[at:upto] = dice.choice(PIECES)
    return bytes(sent)


def with_another_body(dice: random.Random, whole: list[bytes]) -> bytes:
    """A request whose framing is right, so that what is wrong in its body gets as far as it can."""
    head, _, body = dice.choice([each for each in whole if b"content-length" in each]).partition(b"\r\n\r\n")
    content = mutated(dice, [body])
    return re.sub(rb"content-length: \d+", b"content-length: %d" % len(content), head) + b"\r\n\r\n" + content


def sent_together(dice: random.Random, whole: list[bytes]) -> bytes:
    """Several requests at once, one of them mutated."""
    several = [dice.choice(whole) for _ in range(dice.randint(1, 4))]
    several.insert(dice.randrange(len(several) + 1), mutated(dice, whole))
    return b"".join(several)


@pytest.mark.parametrize("make", [random_bytes, mutated, with_another_body, sent_together])
async def test_whatever_is_sent_breaks_nothing_and_leaves_nothing_behind(gw: Gateway, make, caplog):
    dice, whole = random.Random(make.__name__), requests(gw.key)  # noqa: S311 - no secrets
    await gw.client().chat.completions.create(**HELLO)  # so that what is made once is there
    await quiet(gw)
    tasks, files = len(asyncio.all_tasks()), open_files()

    async def some(inputs: list[tuple[bytes, float]]) -> None:
        for sent, cut in inputs:
            said = await talk(gw, sent, cut)
            assert not re.search(rb"HTTP/1\.1 500", said), (sent, said)

    made = [(make(dice, whole), dice.choice((1.0, 1.0, dice.random()))) for _ in range(ROUNDS)]
    await asyncio.gather(*(some(made[first::AT_ONCE]) for first in range(AT_ONCE)))
    assert "defect" not in caplog.text
    assert "Traceback" not in caplog.text
    await quiet(gw)

    async def back_to_normal() -> bool:
        return len(asyncio.all_tasks()) <= tasks and open_files() <= files + 2

    await until(back_to_normal)
    await gw.client().chat.completions.create(**HELLO)


async def test_a_number_that_no_database_holds_is_refused(gw: Gateway):
    headers = {"authorization": "Bearer master"}
    reply = await gw.http.get("/admin/audit", params={"before": 2**63}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "before")
    assert (
        await gw.http.get("/admin/audit", params={"before": 2**63 - 1}, headers=headers)
    ).status_code == 200


async def talk(gw: Gateway, sent: bytes, cut: float) -> bytes:
    """What is said to these bytes. With `cut` below 1 the client leaves after that share of them, without a word."""
    reader, writer = await asyncio.open_connection(*gw.address)
    said = b""
    try:
        with suppress(ConnectionError):
            writer.write(sent[: int(len(sent) * cut)])
            if cut < 1:
                await asyncio.sleep(0)
                writer.transport.abort()
                return b""
            with suppress(TimeoutError):  # of half a request, the rest is waited for
                async with asyncio.timeout(PATIENCE_S):
                    while block := await reader.read(65_536):
                        said += block
        return said
    finally:
        writer.transport.abort()


async def quiet(gw: Gateway) -> None:
    async def nothing_runs() -> bool:
        return (await gw.metrics())["tidegate_calls_running"] == 0

    await until(nothing_runs)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
