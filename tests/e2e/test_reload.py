"""A configuration file that changes while the gateway serves: what takes effect, what waits, and what is refused."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
import yaml
from failing import MESSAGES, QUICK
from gateway_process import Gateway, gateway_beside, key_before_start, write_config
from held import HeldWorker
from openai import AsyncOpenAI
from pool import PRICE, endpoint, until
from prometheus_client.parser import text_string_to_metric_families

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CALL: dict[str, Any] = {"model": "llama", "messages": MESSAGES, "max_tokens": 2}


def models(*endpoints: dict[str, object], **more: Any) -> dict[str, Any]:
    return {"llama": {"price": PRICE, "endpoints": list(endpoints), **more}}


async def metric(gw: Gateway, name: str, **labels: str) -> float | None:
    page = await asyncio.to_thread(gw.metrics)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


async def reloaded(gw: Gateway, outcome: str, times: int = 1) -> None:
    async def did() -> bool:
        return await metric(gw, "tidegate_config_reloads_total", outcome=outcome) == times

    await until(did)


@asynccontextmanager
async def process_over(home: Path, models: dict[str, Any]) -> AsyncIterator[tuple[Gateway, AsyncOpenAI]]:
    """A gateway process, and a client of it."""
    key = key_before_start(home, "acme")
    async with gateway_beside(home, models) as gw:
        async with AsyncOpenAI(base_url=f"{gw.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
            yield gw, client


async def served_by(client: AsyncOpenAI, **more: Any) -> str:
    reply = await client.chat.completions.with_raw_response.create(**CALL | more)
    return reply.headers["x-tidegate-endpoint"]


async def test_endpoints_prices_models_and_policies_change_and_a_call_keeps_what_it_began_with(
    tmp_path: Path,
):
    async with HeldWorker() as old, SimWorker(QUICK) as new:
        async with process_over(tmp_path, models(endpoint(old, "old"))) as (gw, client):
            call = asyncio.create_task(served_by(client, user="a"))
            await until(lambda: _true(old.reached == ["a"]))
            dearer = {"input": 10, "output": 20}
            changed = models(endpoint(new, "new"), price=dearer, aliases=["tide"])
            changed["other"] = {"price": PRICE, "endpoints": [endpoint(new, "new")]}
            tenants = {"acme": {"policy": {"tiers": ["default", "flex"]}}}
            write_config(tmp_path, changed, tenants=tenants)
            await reloaded(gw, "applied")

            async def new_serves() -> bool:
                return await metric(gw, "tidegate_endpoint_available", model="other", endpoint="new") == 1.0

            await until(new_serves)
            assert await served_by(client, model="tide") == "new"
            assert await served_by(client, model="other") == "new"
            with pytest.raises(openai.PermissionDeniedError):
                await served_by(client, service_tier="priority")
            assert await metric(gw, "tidegate_endpoint_available", endpoint="old") is None
            old.answer("a")
            assert await call == "old"
            reply = await client.chat.completions.with_raw_response.create(**CALL)
            usage = reply.parse().usage
            charged = usage.prompt_tokens * 10_000 + usage.completion_tokens * 20_000
            assert reply.headers["x-tidegate-cost-usd"] == f"0.{charged:09d}"


async def _true(value: bool) -> bool:  # noqa: FBT001 - what is waited for
    return value


async def test_a_file_that_is_not_valid_changes_nothing_and_says_so(tmp_path: Path):
    async with SimWorker(QUICK) as worker:
        served = models(endpoint(worker, "w"))
        async with process_over(tmp_path, served) as (gw, client):
            write_config(tmp_path, models(endpoint(worker, "w", trust="blind")))
            await reloaded(gw, "invalid")
            assert await metric(gw, "tidegate_config_valid") == 0.0
            assert "models.llama.endpoints[0].trust" in gw.log.read_text()
            assert await served_by(client) == "w"
            gw.config.write_text("models: [")
            await reloaded(gw, "invalid", 2)
            assert await served_by(client) == "w"
            write_config(tmp_path, served)
            await reloaded(gw, "unchanged")
            assert await metric(gw, "tidegate_config_valid") == 1.0


async def test_sighup_has_the_file_read_and_what_takes_a_restart_is_named(tmp_path: Path):
    async with SimWorker(QUICK) as worker:
        served = models(endpoint(worker, "w"))
        async with process_over(tmp_path, served) as (gw, client):
            gw.process.send_signal(signal.SIGHUP)
            await reloaded(gw, "unchanged")
            write_config(
                tmp_path, served, timeouts={"total_s": 7}, limits={"attempts": 2, "header_bytes": 9999}
            )
            await reloaded(gw, "applied")
            assert "these take a restart: timeouts.total_s, limits.header_bytes" in gw.log.read_text()
            assert await metric(gw, "tidegate_config_keys_waiting") == 2.0
            assert await served_by(client) == "w"


async def test_a_link_that_leads_elsewhere_is_a_change_as_kubernetes_makes_it(tmp_path: Path):
    async with SimWorker(QUICK) as one, SimWorker(QUICK) as two:
        async with process_over(tmp_path, models(endpoint(one, "one"))) as (gw, client):
            settings = yaml.safe_load(gw.config.read_text())
            other = tmp_path / "other.yaml"
            other.write_text(yaml.safe_dump({**settings, "models": models(endpoint(two, "two"))}))
            link = tmp_path / "link"
            link.symlink_to(other)
            link.replace(gw.config)
            await reloaded(gw, "applied")

            async def two_serves() -> bool:
                return await metric(gw, "tidegate_endpoint_available", endpoint="two") == 1.0

            await until(two_serves)
            assert await served_by(client) == "two"


async def test_secrets_in_files_are_rotated_while_the_gateway_serves(tmp_path: Path):
    (tmp_path / "api_key").write_text("sk-old\n")
    (tmp_path / "master_key").write_text("master-old\n")
    auth = {"master_key": f"file:{tmp_path}/master_key"}
    async with SimWorker() as worker:
        served = models(endpoint(worker, api_key=f"file:{tmp_path}/api_key"))
        async with gateway_beside(tmp_path, served, auth=auth) as gw:

            async def asked_with(key: str) -> str | None:
                """Which key the worker is asked with."""
                async with AsyncOpenAI(base_url=f"{gw.url}/v1", api_key=key, max_retries=0) as client:
                    await client.chat.completions.create(**CALL)
                return worker.requests[-1].header(b"authorization")

            assert await asked_with("master-old") == "Bearer sk-old"
            (tmp_path / "api_key").write_text("sk-new\n")
            await reloaded(gw, "applied")
            assert await asked_with("master-old") == "Bearer sk-new"
            (tmp_path / "master_key").write_text("master-new\n")
            await reloaded(gw, "applied", times=2)
            assert await asked_with("master-new") == "Bearer sk-new"
            with pytest.raises(openai.AuthenticationError):
                await asked_with("master-old")
            (tmp_path / "master_key").unlink()
            await reloaded(gw, "invalid")
            assert await asked_with("master-new") == "Bearer sk-new"
            assert "sk-" not in gw.log.read_text()
