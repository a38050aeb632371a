"""Several processes of one gateway: one that dies takes nothing with it but its own calls, and all of them are one to ask."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from failing import LAST, STREAM, chunk, event, hosted
from gateway_process import (
    LIMIT_S,
    PROJECT,
    answers,
    gateway_beside,
    gateway_process,
    key_before_start,
    rows_in,
    until,
    write_config,
)
from openai import AsyncOpenAI
from pool import PRICE
from scripted import Server

from loadtest.process import worker_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway_process import Gateway
    from scripted import Peer

CALL: dict[str, Any] = {"model": "llama", "messages": [{"role": "user", "content": "Why are there tides?"}]}
OPEN: dict[str, Any] = {"auth": {"mode": "none"}, "server": {"workers": 2}}
STREAMS = 12
"""So many that each of two processes has some, but for one time in two thousand."""
SERVED_BY_NOBODY = {"llama": {"price": PRICE, "endpoints": [hosted(9, "nobody")]}}


class Provider:
    """An endpoint that streams "high " and, once the test allows it, "water"."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def script(self, peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(STREAM + chunk("high "))
            await self.may_end.wait()
            await peer.send(chunk("water"), chunk("", "stop"), event(b"[DONE]"), LAST)


@asynccontextmanager
async def two_processes(home: Path) -> AsyncIterator[tuple[Gateway, AsyncOpenAI, Provider]]:
    provider = Provider()
    async with Server(provider.script) as server:
        models = {"llama": {"price": PRICE, "endpoints": [hosted(server.port, "provider")]}}
        async with (
            gateway_beside(home, models, **OPEN, timeouts={"drain_s": LIMIT_S}) as gateway,
            AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0, timeout=LIMIT_S) as client,
        ):
            yield gateway, client, provider
            provider.may_end.set()


async def streams(client: AsyncOpenAI) -> list[Any]:
    """Each on a connection of its own, and begun."""
    begun = await asyncio.gather(
        *(client.chat.completions.create(**CALL, stream=True) for _ in range(STREAMS))
    )
    for each in begun:
        assert (await anext(each)).choices[0].delta.content == "high "
    return begun


async def rest(stream: Any) -> str:
    """How it goes on."""
    try:
        return "".join([each.choices[0].delta.content or "" async for each in stream])
    except (openai.APIError, OSError):
        return "broken"
    except Exception as error:  # httpx's own, where a connection breaks in the middle of a stream
        if "incomplete" not in str(error) and "peer closed" not in str(error):
            raise
        return "broken"


def pids(gateway: Gateway) -> dict[int, int]:
    """Of the processes that are there now, by number."""
    return {
        int(n): int(pid)
        for n, pid in re.findall(r"process (\d+) is ready \(pid (\d+)\)", gateway.log.read_text())
    }


def figure(page: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE))


async def test_a_killed_process_takes_its_own_streams_only_and_is_replaced(tmp_path: Path):
    async with two_processes(tmp_path) as (gateway, client, provider):
        begun, before = await streams(client), pids(gateway)
        os.kill(before[0], signal.SIGKILL)
        await asyncio.to_thread(until, lambda: pids(gateway)[0] != before[0], gateway.process, gateway.log)
        provider.may_end.set()
        ends = Counter(await asyncio.gather(*map(rest, begun)))
        assert ends == {"water": ends["water"], "broken": STREAMS - ends["water"]}
        assert 0 < ends["water"] < STREAMS
        assert pids(gateway)[1] == before[1]
        for each in await streams(client):
            assert await rest(each) == "water"
        assert await asyncio.to_thread(gateway.ended, signal.SIGTERM) == 0
    # What the dead one had under way has been entered by those that lived on.
    assert Counter(row.outcome for row in rows_in(tmp_path)) == {
        "ok": ends["water"] + STREAMS,
        "gateway_died": ends["broken"],
    }


async def test_connections_that_come_while_a_process_is_gone_are_served_by_the_others(tmp_path: Path):
    async with two_processes(tmp_path) as (gateway, client, provider):
        provider.may_end.set()
        os.kill(pids(gateway)[1], signal.SIGSTOP)  # it accepts nothing, and those that are given to it wait
        calls = [
            asyncio.create_task(client.chat.completions.create(**CALL, stream=True)) for _ in range(STREAMS)
        ]
        await asyncio.sleep(0.2)
        os.kill(pids(gateway)[1], signal.SIGKILL)
        for stream in await asyncio.gather(*calls):
            assert await rest(stream) == "high water"


async def test_sigterm_lets_the_streams_of_all_processes_finish(tmp_path: Path):
    async with two_processes(tmp_path) as (gateway, client, provider):
        begun = await streams(client)
        gateway.process.send_signal(signal.SIGTERM)
        await eventually(lambda: refuses(gateway.address))
        provider.may_end.set()
        assert {await rest(each) for each in begun} == {"water"}
        assert await asyncio.to_thread(gateway.process.wait, LIMIT_S) == 0
    assert [row.outcome for row in rows_in(tmp_path)] == ["ok"] * STREAMS


async def test_processes_whose_supervisor_is_killed_finish_their_streams_and_end(tmp_path: Path):
    async with two_processes(tmp_path) as (gateway, client, provider):
        begun, left = await streams(client), pids(gateway)
        await asyncio.to_thread(gateway.kill)
        provider.may_end.set()
        assert {await rest(each) for each in begun} == {"water"}
        await eventually(lambda: not any(map(is_there, left.values())))


def is_there(pid: int) -> bool:
    try:
        # One that has ended and that nobody has asked about is a zombie.
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def eventually(true: Callable[[], bool]) -> None:
    """Of what has no log and no process to be watched."""
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.02)


def refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, LIMIT_S).close()
    except ConnectionError:
        return True
    return False


async def test_a_scrape_of_any_process_counts_for_all_and_no_counter_falls_with_one_of_them(tmp_path: Path):
    async with two_processes(tmp_path) as (gateway, client, provider):
        provider.may_end.set()
        for each in await streams(client):
            await rest(each)

        async def pages() -> list[str]:
            """Asked for on connections of their own, so that either process answers some of them."""
            return [await asyncio.to_thread(gateway.metrics) for _ in range(STREAMS)]

        for page in await pages():
            assert (
                figure(page, "tidegate_calls_total") == figure(page, "tidegate_call_seconds_count") == STREAMS
            )
            assert figure(page, "tidegate_processes") == 2
            assert figure(page, "tidegate_endpoint_available") == 1
        before = pids(gateway)
        os.kill(before[0], signal.SIGKILL)
        await asyncio.to_thread(until, lambda: pids(gateway)[0] != before[0], gateway.process, gateway.log)
        for page in await pages():
            assert figure(page, "tidegate_calls_total") == STREAMS
            assert figure(page, "tidegate_processes_ended_total") == 1


def test_what_is_wrong_from_the_start_is_said_once(tmp_path: Path):
    home = tmp_path
    (home / "journal").write_text("no folder")
    done = serve(home, {**OPEN, "server": {"workers": 3}})
    assert done.returncode == 1
    assert done.stdout.count("cannot use") == 1
    assert "Traceback" not in done.stdout


def test_a_port_that_another_gateway_has_is_not_shared_with_it(tmp_path: Path):
    (tmp_path / "one").mkdir()
    with gateway_process(tmp_path / "one", SERVED_BY_NOBODY, **OPEN) as gateway:
        port = gateway.address[1]
        done = serve(tmp_path / "two", {**OPEN, "listen": {"port": port}})
    assert (done.returncode, "cannot listen on" in done.stdout) == (1, True)


def test_limits_in_the_configuration_take_redis(tmp_path: Path):
    done = serve(
        tmp_path, {"server": {"workers": 2}, "tenants": {"acme": {"policy": {"requests_per_min": 10}}}}
    )
    assert done.returncode == 2
    assert re.search(r"^server.workers: .*tenants.acme .*shared_state", done.stdout)


def test_limits_in_the_database_take_redis_too(tmp_path: Path):
    key_before_start(tmp_path, "acme")
    config = write_config(tmp_path, SERVED_BY_NOBODY)
    words = ["keys", "create", "--tenant", "acme", "--requests-per-min", "10", "--config", str(config)]
    subprocess.run([sys.executable, "-m", "gateway", *words], cwd=PROJECT, check=True, capture_output=True)
    done = serve(tmp_path, {"server": {"workers": 2}})
    assert done.returncode == 2
    assert (
        len(re.findall(r"^server.workers: .*of tenant acme .*shared_state", done.stdout, re.MULTILINE)) == 1
    )


def test_a_limit_that_is_set_later_is_never_counted_by_each_process_for_itself(tmp_path: Path):
    with gateway_process(tmp_path, SERVED_BY_NOBODY, server={"workers": 2}) as gateway:
        key = gateway.command("keys", "create", "--tenant", "acme", "--requests-per-min", "10")[0]["key"]
        # Which process takes a connection is chance: all of so many at one of two would be one in 30,000.
        until(lambda: all(gateway.admits(key) for _ in range(16)), gateway.process, gateway.log)
        headers = {"authorization": f"Bearer {key}"}
        for _ in range(6):
            assert status_of_call(gateway, headers) == (503, "limits_unavailable")


def status_of_call(gateway: Gateway, headers: dict[str, str]) -> tuple[int, str]:
    client = openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key=headers["authorization"][7:], max_retries=0, timeout=LIMIT_S
    )
    with client, pytest.raises(openai.APIStatusError) as failed:
        client.chat.completions.create(**CALL)
    return failed.value.status_code, failed.value.code


def test_ctrl_c_ends_all_processes_in_order(tmp_path: Path):
    with gateway_process(tmp_path, SERVED_BY_NOBODY, **OPEN) as gateway:
        left = pids(gateway)
        assert gateway.ended(signal.SIGINT) == 0
        assert not any(map(is_there, left.values()))


def test_sighup_reaches_all_processes(tmp_path: Path):
    with gateway_process(tmp_path, SERVED_BY_NOBODY, **OPEN) as gateway:
        gateway.process.send_signal(signal.SIGHUP)
        said = [f"nothing else has changed [process {number}]" for number in (0, 1)]
        until(lambda: all(each in gateway.log.read_text() for each in said), gateway.process, gateway.log)


def test_a_process_that_is_started_anew_begins_with_the_file_as_it_is(tmp_path: Path):
    with gateway_process(tmp_path, SERVED_BY_NOBODY, **OPEN) as gateway:
        write_config(tmp_path, {**SERVED_BY_NOBODY, "newer": SERVED_BY_NOBODY["llama"]}, **OPEN)
        until(lambda: gateway.log.read_text().count("is taken over") == 2, gateway.process, gateway.log)
        before = pids(gateway)
        os.kill(before[1], signal.SIGKILL)
        until(lambda: pids(gateway)[1] != before[1], gateway.process, gateway.log)
        for _ in range(8):
            assert answers(f"{gateway.url}/v1/models/newer")


def serve(home: Path, sections: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """A gateway that does not get to serve."""
    home.mkdir(exist_ok=True)
    config = write_config(home, SERVED_BY_NOBODY, **sections)
    return subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(config)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


MASTER = "sk-master-0123456789"
NOBODY = {"llama": {"price": PRICE, "endpoints": []}, "other": SERVED_BY_NOBODY["llama"]}


def asked(gateway: Gateway, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """On a connection of its own, so that any of the processes answers."""
    headers = {"authorization": f"Bearer {MASTER}", "content-type": "application/json"}
    connection = HTTPConnection(*gateway.address, timeout=LIMIT_S)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        said = reply.read()
        return reply.status, json.loads(said) if said else None
    finally:
        connection.close()


def everywhere(gateway: Gateway, path: str, true: Callable[[int, Any], bool]) -> None:
    """Wait until this is so of twelve answers in a row, each by any of two processes."""
    until(lambda: all(true(*asked(gateway, "GET", path)) for _ in range(12)), gateway.process, gateway.log)


async def test_a_node_that_registers_with_one_process_is_known_to_all_stays_drains_and_leaves(tmp_path: Path):
    async with worker_process(model="llama") as worker:
        auth = {"master_key": MASTER}
        said = {"name": "node-1", "url": worker.url, "models": ["llama"], "lease_s": 2}
        async with gateway_beside(tmp_path, NOBODY, auth=auth, server={"workers": 2}) as gateway:
            await asyncio.to_thread(registered_and_gone, gateway, said)


def registered_and_gone(gateway: Gateway, said: dict[str, Any]) -> None:
    assert asked(gateway, "POST", "/admin/nodes", said)[0] == 201
    everywhere(gateway, "/admin/nodes/node-1", lambda status, node: status == 200 and serves(node))
    call = {**CALL, "max_tokens": 2}
    ends_s = time.monotonic() + 10
    while time.monotonic() < ends_s:  # for several leases, its heartbeats go to either
        assert asked(gateway, "POST", "/admin/nodes/node-1/heartbeat")[0] == 200
        assert asked(gateway, "POST", "/v1/chat/completions", call)[0] == 200
        time.sleep(0.3)
    assert asked(gateway, "POST", "/admin/nodes/node-1/drain", {"within_s": 60})[0] == 200
    everywhere(gateway, "/admin/nodes/node-1", lambda _, node: node["workers"][0]["state"] == "draining")
    assert asked(gateway, "DELETE", "/admin/nodes/node-1/drain")[0] == 200
    everywhere(gateway, "/admin/nodes/node-1", lambda _, node: serves(node))
    # And now no heartbeat comes.
    everywhere(gateway, "/admin/nodes", lambda _, nodes: not nodes["nodes"])
    history = asked(gateway, "GET", "/admin/nodes")[1]["histories"]["node-1"]
    assert (history["stays"], history["endings"]) == (1, {"lease_lost": 1})


def serves(node: Any) -> bool:
    return [worker["state"] in ("serving", "ramping") for worker in node["workers"]] == [True]


async def test_a_node_is_drained_only_when_no_process_has_a_call_there(tmp_path: Path):
    async with worker_process(model="llama", decode_s_per_token=0.05, max_num_seqs=64) as worker:
        models = {"llama": {"price": PRICE, "endpoints": [{"worker": worker.url, "name": "gpu"}]}}
        async with (
            gateway_beside(
                tmp_path, models, auth={"mode": "none", "master_key": MASTER}, server={"workers": 2}
            ) as gateway,
            AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0, timeout=LIMIT_S) as client,
        ):
            begun = await asyncio.gather(
                *(client.chat.completions.create(**CALL, stream=True, max_tokens=200) for _ in range(STREAMS))
            )
            for each in begun:
                await anext(each)

            def all_shown(inflight: int) -> None:
                path = "/admin/nodes/gpu"
                everywhere(gateway, path, lambda _, node: node["workers"][0]["inflight"] == inflight)

            await asyncio.to_thread(all_shown, STREAMS)
            for each in begun[1:]:
                await each.close()
            await asyncio.to_thread(all_shown, 1)
            for _ in range(6):  # whichever process is asked
                lease = (
                    await asyncio.to_thread(
                        asked, gateway, "POST", "/admin/nodes/gpu/drain", {"within_s": 60}
                    )
                )[1]
                assert lease["drained"] is False
            await begun[0].close()
            await asyncio.to_thread(all_shown, 0)
            lease = (
                await asyncio.to_thread(asked, gateway, "POST", "/admin/nodes/gpu/drain", {"within_s": 60})
            )[1]
            assert lease["drained"] is True
