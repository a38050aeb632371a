"""wrk as the bench's source of requests: the least that a request can cost on the sending side.

wrk judges a reply by its status alone, so the bytes it read are kept for a comparison with those of a reply that was
looked at.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path

_REPORT = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nJSON{"requests":%d,"bytes":%d,"duration_us":%d,"bad_status":%d,"socket_errors":%d,"timeouts":%d}\\n',
    summary.requests, summary.bytes, summary.duration, e.status, e.connect + e.read + e.write, e.timeout))
end
"""


class WrkResult(Struct, frozen=True):
    requests: int
    bytes: int
    """Read, heads included."""
    duration_us: int
    bad_status: int
    socket_errors: int
    timeouts: int

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.duration_us * 1e6

    @property
    def problem(self) -> str | None:
        """What makes the figure worthless, or None."""
        faults = {
            "replies with an error status": self.bad_status,
            "socket errors": self.socket_errors,
            "timeouts": self.timeouts,
        }
        if not self.requests:
            return "no reply at all"
        return ", ".join(f"{number} {kind}" for kind, number in faults.items() if number) or None


def installed() -> str | None:
    return shutil.which("wrk")


def write_script(path: Path, key: str, body: dict[str, Any]) -> None:
    """The Lua script that has wrk send `body`."""
    text = json.dumps(body)
    path.write_text(
        f'wrk.method = "POST"\nwrk.body = [==[{text}]==]\nwrk.headers["content-type"] = "application/json"\n'
        f'wrk.headers["authorization"] = "Bearer {key}"\n{_REPORT}'
    )


def command(script: Path, url: str, *, connections: int, seconds: float) -> list[str]:
    options = [
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "30s",
        "-s",
        str(script),
    ]
    return [installed() or "wrk", *options, f"{url}/chat/completions"]


def run(script: Path, url: str, *, connections: int, seconds: float) -> WrkResult:
    done = subprocess.run(  # noqa: S603 - a program of the system, options ours
        command(script, url, connections=connections, seconds=seconds),
        check=True,
        capture_output=True,
        text=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("JSON"))
    return WrkResult(**json.loads(line[4:]))
