"""Discoveries as the configuration changes: what is kept, what ends, and what becomes of the workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from kubernetes_api import TOKEN, KubernetesApi, pod
from scripted import until

from gateway.config import Config
from gateway.discoveries import Discoveries
from gateway.fleet import fleet_of

if TYPE_CHECKING:
    from pathlib import Path

    from backends.fleet import Fleet

LIMIT_S = 60.0


def config(*discover: dict[str, Any], **model: Any) -> Config:
    price = {"input": 1, "output": 2}
    section = {"price": price, "endpoints": [], "discover": list(discover), **model}
    return Config.model_validate({"models": {"llama": section}, "health": {"interval_s": 3600}})


def names(fleet: Fleet) -> list[str]:
    return sorted(member.endpoint.name for member in fleet.members)


async def test_what_is_not_configured_any_more_ends_and_what_is_goes_on(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    async with KubernetesApi() as api:
        await api.put("s1", 9, pod("pod-1"))
        kubernetes = {"service": "vllm", "namespace": "pool", "port": "http", "api": api.url}
        slices = {"kubernetes": {**kubernetes, "token_file": str(token)}, "region": "eu"}
        dns = {"dns": {"host": "localhost", "port": 9}}
        before = config(slices, dns)
        async with fleet_of(before) as fleet, Discoveries(fleet, before) as discoveries:
            await until(lambda: "pod-1" in names(fleet) and len(names(fleet)) > 1, LIMIT_S)
            (member,) = [each for each in fleet.members if each.endpoint.name == "pod-1"]
            assert (member.source, member.endpoint.region) == ("llama.discover[0]", "eu")

            discoveries.configure(config(slices, context_tokens=2048))
            assert names(fleet) == ["pod-1"]
            assert fleet.find(member.endpoint) is member
            assert member.endpoint.context_tokens == 2048
            assert api.lists == 1

            discoveries.configure(config({**slices, "region": "us"}))
            await until(lambda: [each.endpoint.region for each in fleet.members] == ["us"], LIMIT_S)
            assert api.lists == 2

            discoveries.configure(config())
            assert names(fleet) == []
        assert not any("discovery of" in task.get_name() for task in asyncio.all_tasks())


async def test_that_an_operator_drains_a_worker_is_not_undone_by_what_is_found(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    async with KubernetesApi() as api:
        await api.put("s1", 9, pod("pod-1"))
        kubernetes = {"service": "vllm", "namespace": "pool", "port": "http", "api": api.url}
        some = config({"kubernetes": {**kubernetes, "token_file": str(token)}})
        async with fleet_of(some) as fleet, Discoveries(fleet, some):
            await until(lambda: names(fleet) == ["pod-1"], LIMIT_S)
            (member,) = fleet.members
            member.departure.announce(3600, draining=True)
            await api.watched()
            await api.put("s1", 9, pod("pod-1"), pod("pod-2"))
            await until(lambda: len(names(fleet)) == 2, LIMIT_S)
            assert member.draining
            assert member.departs_s is not None
