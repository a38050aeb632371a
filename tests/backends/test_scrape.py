import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Script, Server, answers, until

from backends.fleet import Fleet, FleetSettings, Member
from backends.incoming import Patience
from backends.lane import LaneLimits
from backends.scrape import FRESH_S, PAGE_BYTES, Scraped, read_page, scrape
from backends.sweep import Sweep
from backends.worker import Access, Outgoing
from loadtest.worker import SimWorker, WorkerSpec
from routing.pool import Pool
from routing.types import Call, Endpoint, Tier

CALL = Call("m", Tier("default", 5.0, 1e6), prompt_tokens=1)

CAPTURE = Path(__file__).parents[3] / "shared" / "vllm" / "captures" / "metrics.txt"

TWO_ENGINES = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \\"b\\" {c}, d"} 3.0
vllm:num_requests_running{engine="1",model_name="a \\"b\\" {c}, d"} 2.0 1700000000000
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1e0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 200.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 60.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000",x="}"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="500"} 1.0
process_start_time_seconds 1.7e9
"""


def test_the_engines_of_a_worker_are_added_up():
    assert read_page(TWO_ENGINES, 5.0, inflight=3) == Scraped(
        at_s=5.0,
        running=5,
        waiting=5,
        foreign_running=7,
        kv_usage=0.5,
        kv_tokens=24_000,
        queried_tokens=300,
        hit_tokens=60,
        started_s=1.7e9,
    )


@pytest.mark.skipif(not CAPTURE.is_file(), reason="no captures of a real vLLM here")
def test_the_page_of_a_real_vllm_is_read():
    scraped = read_page(CAPTURE.read_bytes(), 0.0)
    assert (scraped.running, scraped.waiting, scraped.kv_usage) == (0, 0, 0.0)
    assert scraped.kv_tokens == 524_288
    assert (scraped.queried_tokens, scraped.hit_tokens) == (48_051, 22_528)
    assert scraped.started_s == pytest.approx(1_795_352_129, abs=1)


def test_more_calls_of_ours_than_the_page_shows_make_no_debt():
    assert read_page(TWO_ENGINES, 0.0, inflight=50).foreign_running == 0


@pytest.mark.parametrize(
    "page", [b"", b"<html>", b"# only a comment\n", b"vllm:num_requests_running{", b"\xff\x00\n" * 100]
)
def test_what_is_no_page_of_vllm_says_nothing(page: bytes):
    assert read_page(page, 0.0) is None


def test_nonsense_in_a_page_is_passed_over():
    lines = b"""\
vllm:num_requests_running{engine="0"} 1
vllm:num_requests_running{engine="1"} NaN
vllm:num_requests_running{engine="2"} -5
vllm:num_requests_running{engine="3"} +Inf
vllm:num_requests_waiting many
vllm:kv_cache_usage_perc 7
vllm:cache_config_info{block_size="None",num_gpu_blocks="None"} 1
"""
    scraped = read_page(lines, 0.0)
    assert (scraped.running, scraped.waiting, scraped.kv_usage, scraped.kv_tokens) == (1, 0, 1.0, None)


@given(
    st.binary(max_size=300) | st.lists(st.sampled_from(TWO_ENGINES.splitlines()), max_size=20).map(b"\n".join)
)
def test_no_page_whatever_raises(page: bytes):
    scraped = read_page(page, 0.0, inflight=1)
    assert scraped is None or (scraped.foreign_running >= 0 and 0.0 <= scraped.kv_usage <= 1.0)


def test_a_restart_shows_in_the_start_or_in_counters_that_fall():
    before = Scraped(at_s=0.0, queried_tokens=100, started_s=5.0)
    assert not Scraped(at_s=1.0, queried_tokens=100, started_s=5.0).restarted_since(before)
    assert Scraped(at_s=1.0, queried_tokens=100, started_s=6.0).restarted_since(before)
    assert Scraped(at_s=1.0, queried_tokens=99, started_s=5.0).restarted_since(before)


def reply(status: int, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


@asynccontextmanager
async def member_at(*scripts: Script):
    async with Server(*scripts) as server:
        url = f"http://127.0.0.1:{server.port}"
        settings = FleetSettings(LaneLimits(connections=4), Patience())
        member = Member(Endpoint("w", "m", "m", url=url), Access(url), settings, Pool())
        async with Sweep(lambda: [member.lane], interval_s=0.005):
            yield server, member
            await member.lane.close()


async def test_a_look_at_a_worker_is_noted():
    async with member_at(answers(reply(200, TWO_ENGINES))) as (server, member):
        await scrape(member, 5.0)
        assert server.peers[0].requests[0][0].startswith(b"GET /metrics HTTP/1.1\r\n")
        assert member.scraped.kv_tokens == 24_000
        now_s = time.monotonic()
        alone = member.load(now_s + FRESH_S)
        assert (alone.inflight, alone.decoding) == (0, 0)


async def test_calls_of_others_are_load_as_long_as_the_look_at_them_is_fresh():
    async with member_at(answers(reply(200, TWO_ENGINES))) as (_, member):
        before = member.load(time.monotonic())
        await scrape(member, 5.0)
        now_s = time.monotonic()
        shared = member.load(now_s)
        assert (shared.inflight, shared.decoding) == (10, 5)  # the other five wait
        assert shared.itl_s > before.itl_s
        assert member.load(now_s + FRESH_S) == before


async def hangs(peer):
    await peer.request()
    await peer.lost()


@pytest.mark.parametrize(
    "script",
    [
        answers(reply(404)),
        answers(reply(500, TWO_ENGINES)),
        answers(reply(200, b"<html>")),
        answers(b"SSH-2.0\r\n"),
        answers(reply(200, TWO_ENGINES + b"x" * PAGE_BYTES)),
        hangs,
    ],
    ids=["no page", "500", "another page", "no HTTP", "endless", "silence"],
)
async def test_a_page_that_does_not_come_says_nothing_of_the_worker_s_health(script: Script):
    async with member_at(script) as (_, member):
        await scrape(member, 0.2)
        assert member.scraped is None
        assert member.load(time.monotonic()).unavailable is None
        assert member.ejection.ejections == member.ejection.failed_checks == 0


SETTINGS = FleetSettings(
    LaneLimits(), Patience(), health_interval_s=0.05, health_timeout_s=5.0, scrape_interval_s=0.02
)


@asynccontextmanager
async def fleet_at(url: str):
    async with Fleet({"m": [(Endpoint("w", "m", "sim", url=url), Access(url))]}, SETTINGS) as fleet:
        yield fleet.members[0]


async def test_calls_of_ours_are_no_load_by_others_and_calls_of_others_are():
    spec = WorkerSpec(kv_blocks=500, block_size=32)
    endless = b'{"model":"sim","stream":true,"messages":[{"role":"user","content":"hi"}],"max_tokens":20000,"ignore_eos":true}'
    async with SimWorker(spec) as worker, fleet_at(worker.url) as ours, fleet_at(worker.url) as other:
        outgoing = Outgoing("/chat/completions", endless, "rid", stream=True, ends_s=time.monotonic() + 60.0)
        async with ours.attempt(outgoing, CALL):
            await until(lambda: other.load(time.monotonic()).decoding == 1, 30.0)
            await until(lambda: ours.scraped is not None and ours.scraped.running == 1, 30.0)
            assert ours.load(time.monotonic()).inflight == 1
            assert ours.scraped.kv_tokens == 16_000
        await until(lambda: other.load(time.monotonic()).inflight == 0, 30.0)


async def test_a_fleet_looks_at_workers_and_at_no_provider():
    async with SimWorker() as worker, Server(hangs) as provider:
        hosted = Endpoint("p", "m", "sim", kind="openai", url=f"http://127.0.0.1:{provider.port}/v1")
        listed = [
            (Endpoint("w", "m", "sim", url=worker.url), Access(worker.url)),
            (hosted, Access(hosted.url)),
        ]
        async with Fleet({"m": listed}, SETTINGS) as fleet:
            await until(lambda: fleet.members[0].scraped is not None, 30.0)
            await asyncio.sleep(0.1)
            assert fleet.members[1].scraped is None
            assert not provider.peers
