"""Everything here runs on both event loops: uvloop serves, the standard one is where uvloop cannot be had."""

import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):  # noqa: ARG001 - the hook names its arguments
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
