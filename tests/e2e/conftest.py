from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import uvloop
from vllm_pool import Worker, gateway_over, two_workers, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway_process import Gateway


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Worker]]:
    """Two real vLLM servers, for all tests of a file: they take a minute to start, and a good share of the machine."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    with two_workers(tmp_path_factory.mktemp("vllm")) as both:
        yield both


@pytest.fixture(scope="module")
def gateway(workers: list[Worker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_over(workers, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def pytest_asyncio_loop_factories(config, item):  # noqa: ARG001 - the hook names its arguments
    """The loop that serves."""
    return {"uvloop": uvloop.new_event_loop}
