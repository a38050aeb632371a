import subprocess
import sys

import pytest

from backends.litellm_thread import INSTALL, is_installed

if not is_installed():
    pytest.skip(f"litellm is not installed: {INSTALL}", allow_module_level=True)

LOADS = """
import asyncio, logging, socket
tried = []
socket.socket.connect = lambda self, address: tried.append(address)
socket.getaddrinfo = lambda host, *rest, **more: tried.append(host)
from backends.litellm_thread import LiteLLMThread

async def main():
    async with LiteLLMThread() as thread:
        assert thread.sdk.acompletion
        assert thread.sdk.num_retries == 0
        logging.getLogger("LiteLLM").error("loud")
    assert tried == [], tried

asyncio.run(main())
"""
CANNOT = """
import asyncio, sys
sys.modules["litellm"] = None
from backends.litellm_thread import LiteLLMThread

async def main():
    try:
        async with LiteLLMThread():
            pass
    except RuntimeError as error:
        assert "cannot be loaded" in str(error)
        print("said so")

asyncio.run(main())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


def test_loading_litellm_asks_no_network_and_prints_nothing():
    done = run(LOADS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_litellm_that_cannot_be_loaded_ends_the_start():
    done = run(CANNOT)
    assert "said so" in done.stdout
