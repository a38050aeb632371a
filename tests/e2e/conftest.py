from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import uvloop
from vllm_pool import Worker, gateway_over, three_workers, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway_process import Gateway


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Worker]]:
    """Three real vLLM servers, for all tests: they take a minute to start, and a good share of the machine.

    Tests in the order of their files use them up: test_vllm_leaving.py kills the first, test_vllm_resume.py the second.
    The third has served nobody when test_vllm_kv_events.py gets it.
    """
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    with three_workers(tmp_path_factory.mktemp("vllm")) as three:
        yield three


@pytest.fixture(scope="module")
def workers(servers: list[Worker]) -> list[Worker]:
    """The first two."""
    return servers[:2]


@pytest.fixture(scope="module")
def gateway(workers: list[Worker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_over(workers, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.new_key("harbour")


def pytest_asyncio_loop_factories(config, item):  # noqa: ARG001 - the hook names its arguments
    """The loop that serves."""
    return {"uvloop": uvloop.new_event_loop}
