"""Everything here runs on the event loop that serves."""

import uvloop


def pytest_asyncio_loop_factories(config, item):  # noqa: ARG001 - the hook names its arguments
    return {"uvloop": uvloop.new_event_loop}
