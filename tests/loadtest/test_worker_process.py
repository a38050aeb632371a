from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx2
import pytest
from sim_client import asking

from loadtest.process import worker_process
from loadtest.simworker.account import Worked, accounts_in

if TYPE_CHECKING:
    from pathlib import Path

LONG = asking(stream=True, max_tokens=5000, ignore_eos=True)


async def test_a_worker_process_answers_and_is_gone_at_the_end():
    async with (
        worker_process(model="sim", decode_s_per_token=0, faults='{"kind":"status","match":"bad"}') as worker,
        httpx2.AsyncClient(base_url=worker.url) as client,
    ):
        assert (await client.post("/v1/chat/completions", json=asking("good"))).status_code == 200
        assert (await client.post("/v1/chat/completions", json=asking("bad"))).status_code == 500
    assert worker.returncode is not None
    async with httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get(worker.url)


async def test_a_killed_worker_breaks_its_streams_at_once():
    async with worker_process() as worker, httpx2.AsyncClient(base_url=worker.url) as client:
        async with client.stream("POST", "/v1/chat/completions", json=LONG) as reply:
            lines = reply.aiter_lines()
            await anext(lines)
            worker.kill()
            with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
                [line async for line in lines]
        assert await worker.wait() == -9


async def test_sigterm_without_a_timeout_refuses_connections_and_leaves_streams_in_silence():
    async with worker_process() as worker, httpx2.AsyncClient(base_url=worker.url, timeout=0.5) as client:
        async with client.stream("POST", "/v1/chat/completions", json=LONG) as reply:
            lines = reply.aiter_lines()
            await anext(lines)
            worker.terminate()
            with pytest.raises(httpx2.ReadTimeout):
                [line async for line in lines]
        async with httpx2.AsyncClient() as other:
            with pytest.raises(httpx2.ConnectError):
                await other.get(worker.url)
        async with asyncio.timeout(2):
            assert await worker.wait() == 0  # once its last client has had enough


async def test_sigterm_with_a_timeout_finishes_streams_and_refuses_work_but_not_health():
    async with (
        worker_process(shutdown_timeout=5, decode_s_per_token=0.005) as worker,
        httpx2.AsyncClient(base_url=worker.url) as client,
    ):
        body = asking(stream=True, max_tokens=60, ignore_eos=True)
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.aiter_lines()
            await anext(lines)
            worker.terminate()
            refused = await client.post("/v1/chat/completions", json=asking())
            while refused.status_code == 200:  # the signal is still on its way
                refused = await client.post("/v1/chat/completions", json=asking(max_tokens=1))
            assert refused.status_code == 500
            assert refused.json()["error"]["message"] == "cannot schedule new futures after shutdown"
            assert (await client.get("/health")).status_code == 200
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        async with asyncio.timeout(2):
            assert await worker.wait() == 0


async def test_streams_that_outlast_the_timeout_are_cut_off():
    async with (
        worker_process(shutdown_timeout=0.2) as worker,
        httpx2.AsyncClient(base_url=worker.url) as client,
    ):
        async with client.stream("POST", "/v1/chat/completions", json=LONG) as reply:
            lines = reply.aiter_lines()
            await anext(lines)
            worker.terminate()
            with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
                [line async for line in lines]
        assert await worker.wait() == 0


def test_a_worker_whose_parent_is_gone_exits():
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest", "worker", "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline().startswith(b"ready http://127.0.0.1:")
        process.stdin.close()
        assert process.wait(timeout=2) == 0


async def test_a_busy_port_is_said_in_one_line():
    async with worker_process() as worker:
        port = worker.url.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "loadtest", "worker", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot listen on 127.0.0.1:{port}: ")
    assert done.stderr.count("\n") == 1


def test_faults_that_make_no_sense_are_a_usage_error():
    command = [sys.executable, "-m", "loadtest", "worker", "--faults", '{"kind":"typo"}']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "typo" in done.stderr


async def test_what_a_worker_has_worked_is_in_its_account_though_it_is_killed(tmp_path: Path):
    async with worker_process(account=tmp_path) as worker, httpx2.AsyncClient(base_url=worker.url) as client:
        whole = await client.post(
            "/v1/chat/completions", json=asking("Why?", max_tokens=5), headers={"x-request-id": "whole"}
        )
        async with client.stream(
            "POST", "/v1/chat/completions", json=LONG, headers={"x-request-id": "left"}
        ) as reply:
            await anext(reply.aiter_lines())
        async with asyncio.timeout(60):
            while len(list(accounts_in(tmp_path))) < 2:  # noqa: ASYNC110 - another process sets no event
                await asyncio.sleep(0.01)
        async with client.stream("POST", "/v1/chat/completions", json=LONG) as reply:
            await anext(reply.aiter_lines())
            worker.kill()
        (port, finished), (_, aborted) = accounts_in(tmp_path)
    usage = whole.json()["usage"]
    assert worker.url.endswith(f":{port}")
    assert finished == Worked("whole", usage["prompt_tokens"], 0, usage["completion_tokens"], "finished")
    assert (aborted.request_id, aborted.ended) == ("left", "aborted")
    assert 0 < aborted.completion_tokens < 5000
