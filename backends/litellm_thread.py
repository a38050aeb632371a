"""litellm, in a thread with an event loop of its own.

It takes seconds to import and milliseconds of processor time per call, some of its providers block (boto3 looks for
credentials with a socket), and it leaves tasks behind on whatever loop runs it. All of that stays here: the gateway's
loop starts calls and gets bytes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)

INSTALL = "pip install 'tidegate[litellm]'"
STOP_S = 5.0
"""For what still runs there when the gateway ends; then the thread is left to die with the process."""
_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # both would be fetched at import
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_MODE": "PRODUCTION",  # no .env file is read
}
_SETTINGS: dict[str, bool | int] = {
    "suppress_debug_info": True,  # it prints "Give Feedback / Get Help" on stdout
    "turn_off_message_logging": True,
    "telemetry": False,
    "disable_hf_tokenizer_download": True,
    "user_url_validation": True,  # should it fetch anything after all (see litellm_media), then from public addresses
    "num_retries": 0,  # failover is the gateway's
}


def is_installed() -> bool:
    """Asked without importing it."""
    return importlib.util.find_spec("litellm") is not None


class LiteLLMThread:
    """Runs litellm inside its block, which is entered once it is loaded."""

    def __init__(self) -> None:
        self.sdk: Any = None
        """The module `litellm`."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        caller = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = caller.create_future()
        self._ended = asyncio.Event()
        # A daemon: whatever litellm is stuck in, the process can end.
        threading.Thread(target=self._run, args=(caller,), name="litellm", daemon=True).start()
        await self._started
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._stop is not None:
            self.soon(self._stop.set)
        try:
            await asyncio.wait_for(self._ended.wait(), STOP_S)
        except TimeoutError:
            log.warning("litellm has not stopped within %g s", STOP_S)

    def soon(self, done: Callable[..., object], *arguments: object) -> None:
        """Have something done in the thread. Once that has ended, there is nothing left to be done there."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(done, *arguments)

    def start(
        self, work: Coroutine[Any, Any, None], ended: Callable[[asyncio.Task[None]], None]
    ) -> asyncio.Task[None]:
        """Called in the thread: run `work`, then call `ended`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # a loop holds its tasks weakly
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(ended)
        return task

    def _run(self, caller: asyncio.AbstractEventLoop) -> None:
        try:
            self.sdk = _load()
            asyncio.run(self._serve(caller))
        except BaseException as error:
            caller.call_soon_threadsafe(self._fail, error)
            raise
        finally:
            with contextlib.suppress(RuntimeError):  # nobody has waited so long
                caller.call_soon_threadsafe(self._ended.set)

    def _fail(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(RuntimeError(f"litellm cannot be loaded: {error!r}"))

    async def _serve(self, caller: asyncio.AbstractEventLoop) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        caller.call_soon_threadsafe(self._started.set_result, None)
        await self._stop.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.sdk.close_litellm_async_clients()


def _load() -> Any:
    """The module, quiet and without a look at the network."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm  # noqa: PLC0415 - an extra, and it takes seconds
    # Some of its models are made at their first use.
    warnings.filterwarnings("ignore", message=".*using the `ReadOnly` qualifier", category=UserWarning)
    for name, setting in _SETTINGS.items():
        setattr(litellm, name, setting)
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is reported by whoever called
    return litellm
