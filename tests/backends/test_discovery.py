"""Workers found by the addresses of a name and by Kubernetes' EndpointSlices, and names that lead elsewhere."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from kubernetes_api import PATH, TOKEN, KubernetesApi, pod
from scripted import OK, answers, ask, exchange, serving, until

from backends.discovery import DnsNames, Found, addresses_of, is_address, url_at
from backends.discovery_kubernetes import ApiServer, EndpointSlices, SliceQuery

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 60.0
QUERY = SliceQuery("pool", "kubernetes.io/service-name=vllm", "http")


@asynccontextmanager
async def following(api: KubernetesApi, tmp_path: Path, query: SliceQuery = QUERY):
    """What has been told, each time, by a client that follows the API."""
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    told: list[tuple[Found, ...]] = []
    slices = EndpointSlices(ApiServer(api.url, token), query, told.append)
    task = asyncio.create_task(slices.run())
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names(told: list[tuple[Found, ...]]) -> list[str]:
    return [each.name for each in told[-1]] if told else []


async def tells(told: list[tuple[Found, ...]], *expected: str) -> None:
    await until(lambda: names(told) == list(expected), LIMIT_S)


async def test_pods_that_come_and_go_are_told_of(tmp_path: Path):
    async with KubernetesApi() as api:
        await api.put("s1", 8000, pod("a", "10.0.0.1", ready=True))
        async with following(api, tmp_path) as told:
            await tells(told, "a")
            assert told[-1][0] == Found("a", "http://10.0.0.1:8000")
            assert api.selectors == ["kubernetes.io/service-name=vllm"]
            await api.watched()
            await api.put("s1", 8000, pod("a", "10.0.0.1", ready=True), pod("b", "10.0.0.2", ready=True))
            await tells(told, "a", "b")
            await api.put("s2", 8001, pod("c", "10.0.0.3"))
            await tells(told, "a", "b", "c")
            assert told[-1][2].url == "http://10.0.0.3:8001"
            await api.delete("s1")
            await tells(told, "c")
            await api.put("s2", 8001)
            await tells(told)
            assert api.lists == 1


async def test_what_terminates_but_serves_is_draining_and_what_is_not_ready_is_none(tmp_path: Path):
    async with KubernetesApi() as api:
        await api.put(
            "s1",
            8000,
            pod("ready", ready=True, serving=True, terminating=False),
            pod("unknown"),
            pod("leaving", ready=False, serving=True, terminating=True),
            pod("gone", ready=False, serving=False, terminating=True),
            pod("starting", ready=False, serving=False),
        )
        async with following(api, tmp_path) as told:
            await tells(told, "ready", "unknown", "leaving")
            assert [each.draining for each in told[-1]] == [False, False, True]


async def test_a_watch_that_ends_goes_on_where_it_was(tmp_path: Path):
    async with KubernetesApi() as api:
        await api.put("s1", 8000, pod("a"))
        async with following(api, tmp_path) as told:
            await api.watched()
            api.cut()
            await api.put("s1", 8000, pod("b"))
            await tells(told, "b")
            assert api.lists == 1
            assert api.watches >= 2


async def test_bookmarks_carry_the_watch_past_what_is_too_old(tmp_path: Path):
    async with KubernetesApi() as api:
        await api.put("s1", 8000, pod("a"))
        async with following(api, tmp_path) as told:
            await api.watched()
            before = api.watches
            for _ in range(20):
                await api.bookmark()
            await asyncio.sleep(0.1)
            api.oldest = api.version
            api.cut()
            await until(lambda: api.watches > before, LIMIT_S)
            await api.watched()
            await api.put("s1", 8000, pod("b"))
            await tells(told, "b")
            assert len(told) == 2


@pytest.mark.parametrize("how", ["status", "event"])
async def test_where_the_version_is_too_old_all_is_listed_again(tmp_path: Path, how: str):
    async with KubernetesApi() as api:
        await api.put("s1", 8000, pod("a"))
        async with following(api, tmp_path) as told:
            await tells(told, "a")
            await api.watched()
            api.oldest = api.version + 1
            await api.put("s1", 8000, pod("b"))
            if how == "event":
                await api.send_error(410)
            else:
                api.cut()
            await tells(told, "b")
            await api.put("s1", 8000, pod("c"))
            await tells(told, "c")


async def test_a_server_that_refuses_is_asked_again_and_what_was_found_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with KubernetesApi() as api:
        api.refuses = 2
        await api.put("s1", 8000, pod("a"))
        async with following(api, tmp_path) as told:
            await tells(told, "a")
            assert "the API server answered 403: not for you" in caplog.text
            await api.watched()
            api.token = "another"
            api.cut()
            await asyncio.sleep(0.2)
            assert names(told) == ["a"]
            (tmp_path / "token").write_text("another")
            await api.put("s1", 8000, pod("b"))
            await tells(told, "b")


async def test_the_port_is_found_by_name_by_number_or_is_the_first(tmp_path: Path):
    async with KubernetesApi() as api:
        await api.put("s1", 8000, pod("a", "fd00::1"))
        for port, url in [("http", "[fd00::1]:8000"), (8000, "[fd00::1]:8000"), (None, "[fd00::1]:9")]:
            async with following(api, tmp_path, SliceQuery("pool", "x=y", port)) as told:
                await tells(told, "a")
                assert told[-1][0].url == f"http://{url}"
        async with following(api, tmp_path, SliceQuery("pool", "x=y", "grpc")) as told:
            await until(lambda: told == [()], LIMIT_S)
    assert PATH.endswith("/endpointslices")


async def test_each_address_of_a_name_is_a_worker_and_what_cannot_be_resolved_stands():
    answers_: list[frozenset[str] | OSError] = [
        frozenset({"10.0.0.2", "10.0.0.1"}),
        frozenset({"10.0.0.1", "10.0.0.2"}),
        OSError("no such name"),
        frozenset({"fd00::1"}),
    ]

    async def resolve(host: str) -> frozenset[str]:
        assert host == "vllm.pool"
        answer = answers_.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    told: list[tuple[Found, ...]] = []
    dns = DnsNames("vllm.pool", 8000, "http", told.append, resolve)
    for _ in range(4):
        await dns.look()
    assert told == [
        (
            Found("10.0.0.1:8000", "http://10.0.0.1:8000"),
            Found("10.0.0.2:8000", "http://10.0.0.2:8000"),
        ),
        (Found("[fd00::1]:8000", "http://[fd00::1]:8000"),),
    ]


async def test_a_name_with_more_addresses_than_any_fleet_has_changes_nothing():
    few = frozenset({"10.0.0.1"})
    many = frozenset(f"10.{n >> 8}.{n & 255}.1" for n in range(1001))
    answers_ = [few, many, few]

    async def resolve(_: str) -> frozenset[str]:
        return answers_.pop(0)

    told: list[tuple[Found, ...]] = []
    dns = DnsNames("vllm.pool", 8000, "http", told.append, resolve)
    for _ in range(3):
        await dns.look()
    assert told == [(Found("10.0.0.1:8000", "http://10.0.0.1:8000"),)]


async def test_names_are_resolved_and_addresses_are_no_names():
    assert "127.0.0.1" in await addresses_of("localhost")
    assert is_address("::1")
    assert not is_address("localhost")
    assert url_at("https", "::1", 1) == "https://[::1]:1"
    with pytest.raises(OSError, match=r".+"):
        await addresses_of("nobody.invalid")


async def test_connections_to_where_a_name_led_before_are_not_used_again():
    async with serving(answers(OK)) as (server, lane):
        await ask(lane)
        lane.keep_only({"127.0.0.1"})
        await ask(lane)
        assert len(server.peers) == 1
        async with exchange(lane) as running:
            lane.keep_only({"10.0.0.1"})
            assert await running.read_whole(10) == b"ok"
        await ask(lane)
        assert len(server.peers) == 2
        lane.keep_only({"10.0.0.1"})
        await until(lambda: lane.connections == 0)
