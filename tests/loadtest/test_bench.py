import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from typer.testing import CliRunner

from gateway.config_policy import TenantSection
from loadtest import bench, procfs, wrk
from loadtest.cli import app
from loadtest.comparison import DIRECT, Reading, compare, markdown, middle, notes, ratio
from loadtest.mock import BURST_CHUNKS, PACED_PROMPT, TRACES_PATH, listening, reply_text
from loadtest.proxies import BoundedTidegate, DidNotStartError, Launch, Nginx, Setting, every_proxy
from loadtest.sample import StreamTally
from loadtest.soak import Vitals, judge

QUICK = bench.Plan(
    duration_s=0.3, rounds=1, endpoints=2, server_core=None, load_core=None, warm_up_s=0.1, with_wrk=False
)


async def posted(port, prompt="Hello", **fields: Any):
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **fields}
    async with httpx2.AsyncClient(trust_env=False) as client:
        return await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body)


async def test_the_mock_answers_on_every_port_under_its_own_name():
    async with listening("served", 3) as ports:
        answers = [(await posted(port)).json() for port in ports]
    assert len(set(ports)) == 3
    assert {answer["model"] for answer in answers} == {"served"}
    assert answers[0]["choices"][0]["message"]["content"] == reply_text()


async def test_the_mock_streams_as_vllm_does_and_sends_usage_only_where_it_was_asked():
    async with listening("m") as [port]:
        plain = (await posted(port, stream=True)).text
        asked = (await posted(port, stream=True, stream_options={"include_usage": True})).text
    events = [json.loads(line[6:]) for line in plain.splitlines() if line.startswith("data: {")]
    assert len(events) == BURST_CHUNKS
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [each["choices"][0]["finish_reason"] for each in events] == [None] * (BURST_CHUNKS - 1) + ["stop"]
    assert plain.endswith("data: [DONE]\n\n")
    assert '"usage"' not in plain
    assert json.loads(asked.splitlines()[-4][6:])["usage"]["completion_tokens"] == BURST_CHUNKS - 1


async def test_a_paced_stream_has_as_many_tokens_as_were_asked_for():
    async with listening("m", chunks_per_s=500) as [port]:
        text = (await posted(port, prompt=PACED_PROMPT + "go", stream=True, max_tokens=9)).content
    tally = StreamTally()
    tally.feed(text, 0.0)
    assert (tally.outcome, tally.tokens) == ("ok", 9)


async def test_the_mock_reads_requests_however_they_are_cut():
    request = b'POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 16\r\n\r\n{"stream": true}'
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    async with listening("m") as [port]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for cut in (1, 40, len(request) - 3):
            writer.write(request[:cut])
            await asyncio.sleep(0.005)
            writer.write(request[cut:])
            assert (await reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(chunked + b"GET /nowhere HTTP/1.1\r\n\r\n")
        assert b"chat.completion" in await reader.readuntil(b"}}}")
        assert b"404 Not Found" in await reader.readuntil(b"\r\n")
        writer.close()


def test_the_mock_as_a_process_names_its_addresses_and_ends_on_sigterm():
    command = [sys.executable, "-m", "loadtest", "mock", "--model", "m", "--ports", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        urls = json.loads(process.stdout.readline())["urls"]
        assert [httpx2.get(f"{url}/health", trust_env=False).status_code for url in urls] == [200, 200]
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_the_load_generators_command_writes_its_results_as_json(tmp_path):
    with bench.site(QUICK, tmp_path) as place:
        url = f"{place.upstreams[0]}/v1"
        options = [
            "--requests",
            "40",
            "--concurrency",
            "4",
            "--model",
            "m",
            "--json",
            str(tmp_path / "out.json"),
        ]
        done = CliRunner().invoke(app, ["run", "--url", url, *options])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out.json").read_text())["ok"] == 40


@pytest.mark.skipif(wrk.installed() is None, reason="wrk is not on PATH")
async def test_wrk_sends_the_body_it_was_given_and_its_report_is_read(tmp_path):
    script = tmp_path / "stream.lua"
    wrk.write_script(script, "key", bench.body(stream=True))
    async with listening("m") as [port]:
        result = await asyncio.to_thread(
            wrk.run, script, f"http://127.0.0.1:{port}/v1", connections=4, seconds=1
        )
        wrong = await asyncio.to_thread(
            wrk.run, script, f"http://127.0.0.1:{port}/v2", connections=1, seconds=1
        )
    assert result.problem is None
    assert result.bytes / result.requests > 5000  # streams, then
    assert "error status" in wrong.problem


def test_rate_and_concurrency_exclude_each_other():
    done = CliRunner().invoke(app, ["run", "--url", "http://h/v1", "--model", "m"])
    assert done.exit_code == 2


def test_a_bench_measures_what_is_installed_and_names_what_is_not(tmp_path):
    nginx = Nginx([])
    absent = [proxy for proxy in every_proxy([]) if proxy.missing()]
    with bench.site(QUICK, tmp_path) as place:
        found = bench.run_bench(place, [nginx, *absent], direct=True, say=print)
    assert found.medians[DIRECT].json_per_s > 0
    assert set(found.left_out) == {proxy.name for proxy in absent} | ({"nginx"} if nginx.missing() else set())
    assert all(f"left out: {name}" in markdown(found) for name in found.left_out)
    if not nginx.missing():
        assert found.medians["nginx"].streams_per_s > 0
        assert found.medians["nginx"].resident_mb > 0


async def test_the_mock_takes_spans_for_the_bench_of_traces():
    async with listening("m") as (port,), httpx2.AsyncClient(trust_env=False) as http:
        taken = await http.post(f"http://127.0.0.1:{port}{TRACES_PATH}", content=b"spans")
    assert (taken.status_code, taken.content) == (200, b"")


@dataclass
class Script:
    """A server of a few lines, to be benched."""

    text: str
    name: str = "script"

    def missing(self):
        return None

    def prepare(self, setting):
        path = setting.folder / "server.py"
        path.write_text(self.text.replace("PORT", str(setting.port)))
        return Launch((sys.executable, str(path)))


WRONG = """
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"choices": [{"message": {"content": "I am sorry"}}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", PORT), Answer).serve_forever()
"""


def test_a_server_whose_replies_are_wrong_is_not_timed(tmp_path):
    with bench.site(QUICK, tmp_path) as place:
        found = bench.run_bench(place, [Script(WRONG)], direct=False, say=print)
    reading = found.medians["script"]
    assert reading.json_per_s is None
    assert "not the mock's" in reading.problems[0]
    assert "(!)" in markdown(found)


def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log(tmp_path):
    with bench.site(QUICK, tmp_path) as place:
        found = bench.run_bench(place, [Script("raise SystemExit('no licence')")], direct=False, say=print)
        with (
            pytest.raises(DidNotStartError, match="no licence"),
            bench.started(place, Script("raise SystemExit('no licence')"), "again"),
        ):
            pass
    assert "no licence" in found.medians["script"].problems[0]


def test_nothing_of_a_bench_outlives_it(tmp_path):
    before = set(procfs.family(os.getpid()))  # among them a database that tests share
    with bench.site(QUICK, tmp_path):
        started = set(procfs.family(os.getpid())) - before
        assert started
    assert not set(procfs.family(os.getpid())) & started


def test_medians_are_taken_over_the_rounds_that_have_the_figure_and_problems_are_kept():
    rounds = [
        Reading(json_per_s=3.0),
        Reading(json_per_s=1.0, problems=("slow",)),
        Reading(json_per_s=9.0),
        Reading(problems=("slow",)),
    ]
    found = middle(rounds)
    assert (found.json_per_s, found.streams_per_s, found.problems) == (3.0, None, ("slow",))


def test_ratios_are_to_the_best_peer_whichever_way_the_figure_is_read():
    medians = {
        "tidegate": Reading(json_per_s=9000, paced_core_share=0.30, latency_p50_ms=0.5, latency_p99_ms=2.0),
        "sglang-router": Reading(json_per_s=6000, paced_core_share=0.34),
        "vllm-router": Reading(json_per_s=4000, paced_core_share=0.25),
        DIRECT: Reading(json_per_s=60000, latency_p50_ms=0.3, latency_p99_ms=1.0),
    }
    peers = ["sglang-router", "vllm-router", "absent"]
    assert ratio(medians, "tidegate", peers, "json_per_s") == pytest.approx(1.5)
    assert ratio(medians, "tidegate", peers, "paced_core_share") == pytest.approx(1.2)
    assert ratio(medians, "tidegate", ["absent"], "json_per_s") is None
    found = notes(compare({name: [reading] for name, reading in medians.items()}, {}, "here"))
    assert "tidegate, JSON replies/s: 1.50 x the better Rust router" in found
    assert "tidegate, latency added at 1,000 requests/s: p50 0.20 ms, p99 1.00 ms" in found


def test_a_ratio_to_a_row_that_was_disturbed_is_not_passed_off_as_a_result():
    rows = {
        "tidegate": [Reading(json_per_s=4000, json_cpu_us=240)],
        "vllm-router": [Reading(json_per_s=2700, json_cpu_us=120, problems=("JSON: others took the core",))],
    }
    found = notes(compare(rows, {}, "here"))
    assert "tidegate, JSON replies/s: 1.48 x the better Rust router (no result: vllm-router marked)" in found
    assert "tidegate, CPU of a JSON reply: 2.00 x the better Rust router" in found


def test_the_same_gateway_started_otherwise_is_set_beside_itself():
    rows = {
        "tidegate": [Reading(json_per_s=5000, json_cpu_us=200, stream_cpu_us=300)],
        "tidegate-bounded": [
            Reading(json_per_s=4500, json_cpu_us=220, problems=("JSON: others took the core",))
        ],
    }
    found = notes(compare(rows, {}, "here"))
    assert (
        "tidegate-bounded, against tidegate: JSON replies/s 0.90 x (no result: tidegate-bounded marked),"
        " CPU of a JSON reply 1.10 x" in found
    )
    del rows["tidegate"]
    assert not [line for line in notes(compare(rows, {}, "here")) if "against" in line]


def test_a_gateway_whose_tenant_is_bounded_in_every_way_has_room_for_a_benchs_calls(tmp_path):
    tenants = BoundedTidegate().sections(Setting(("http://127.0.0.1:1",), "m", "m", 1, tmp_path))["tenants"]
    policy = TenantSection.model_validate(tenants["bench"]).policy.policy()
    assert min(policy.requests_per_min, policy.tokens_per_min) > 10**9 - 1
    assert policy.concurrency > bench.PACED_STREAMS + bench.CONNECTIONS
    assert policy.budgets.keys() == {"day", "week", "month", "total"}


def test_a_comparison_round_trips_as_json():
    found = compare({"a": [Reading(json_per_s=1.0)]}, {"b": "is not installed"}, "here")
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


def vitals(memory, descriptors):
    return [
        Vitals(float(n), n * 100, int(mb * 1e6), fds)
        for n, (mb, fds) in enumerate(zip(memory, descriptors, strict=True))
    ]


def test_a_soak_that_levels_off_after_warm_up_is_flat():
    verdict = judge(vitals([50, 70, 90, 100] + [101, 100] * 6, [20] + [60] * 15), {"ok": 1500, "aborted": 70})
    assert verdict.faults == ()


def test_a_soak_finds_memory_that_keeps_growing():
    verdict = judge(vitals([100 + 2 * n for n in range(16)], [60] * 16), {"ok": 1500})
    assert "memory grew" in verdict.faults[0]
    assert verdict.slope_bytes_per_call == pytest.approx(20_000)


def test_a_soak_finds_descriptors_that_are_not_closed():
    assert (
        "descriptors grew" in judge(vitals([100] * 16, [40 + 10 * n for n in range(16)]), {"ok": 1}).faults[0]
    )


def test_a_soak_forgives_aborts_but_no_errors():
    assert judge(vitals([100] * 16, [60] * 16), {"ok": 1, "aborted": 9}).faults == ()
    assert "3 calls ended with reset" in judge(vitals([100] * 16, [60] * 16), {"ok": 1, "reset": 3}).faults


def test_too_short_a_soak_is_no_verdict():
    with pytest.raises(ValueError, match="too few"):
        judge(vitals([100] * 7, [60] * 7), {"ok": 1})


def test_a_familys_use_includes_its_children():
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        while len(procfs.family(process.pid)) < 2:
            assert process.poll() is None
        alone = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert procfs.resident_bytes(process.pid) > alone
        assert procfs.descriptors(process.pid) > len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        process.communicate(b"\n")


MOCK_PORTS = 8


def test_a_bench_that_is_terminated_leaves_nothing_running():
    command = [sys.executable, "-m", "loadtest", "bench", "--targets", "mock", "--quick"]
    with subprocess.Popen(command) as process:
        # The mock listens on its ports: it is not only just being started.
        while (
            len(started := procfs.family(process.pid)) < 2 or procfs.descriptors(started[1]) < 3 + MOCK_PORTS
        ):
            assert process.poll() is None
        process.terminate()
        assert process.wait(15) != 0
    assert len(started) > 1
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
