"""schemathesis at a gateway that runs: everything that OpenAPI says can be sent, and much that it says cannot, for a bounded
time; nothing may be answered with a 500, and nothing in the log may be a defect.

It wants other versions of what the tests are locked to, so it has an environment of its own, which `.ci/run` makes;
TIDEGATE_SCHEMATHESIS names the program. Longer, by hand: TIDEGATE_SCHEMATHESIS_S=600.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from gateway_process import gateway_beside
from pool import PRICE

from loadtest.process import worker_process

PROGRAM = os.environ.get("TIDEGATE_SCHEMATHESIS")
SECONDS = os.environ.get("TIDEGATE_SCHEMATHESIS_S", "25")
PUBLIC = Path(__file__).with_name("public_api.json")
"""What clients send: OpenAI's API as far as it is served here, which the gateway itself does not describe."""
TOML = """
[[operations]]
include-path-regex = "/tenants/|/keys"
parameters = { tenant = "acme", project = "web" }
"""

pytestmark = pytest.mark.skipif(not PROGRAM, reason="TIDEGATE_SCHEMATHESIS names no schemathesis")


@pytest.mark.parametrize("of", ["public", "admin"])
async def test_nothing_that_is_described_or_not_is_answered_with_a_500(tmp_path: Path, of: str):
    times = {"total_s": 10, "silence_s": 5}
    async with worker_process(model="sim", decode_s_per_token=0) as worker:
        models = {
            "llama": {
                "price": PRICE,
                "aliases": ["small"],
                "endpoints": [{"worker": worker.url, "model": "sim"}],
            }
        }
        async with gateway_beside(
            tmp_path, models, auth={"master_key": "master"}, timeouts=times, queue={"max_wait_s": 0.2}
        ) as gw:
            gw.command("tenants", "create", "acme")
            gw.command("projects", "create", "web", "--tenant", "acme")
            (tmp_path / "schemathesis.toml").write_text(TOML)
            described = str(PUBLIC) if of == "public" else f"{gw.url}/admin/openapi.json"
            words = [
                *(PROGRAM, "--config-file", "schemathesis.toml", "run", described, "--url", gw.url),
                *("--header", "Authorization: Bearer master", "--checks", "not_a_server_error"),
                *(
                    "--phases",
                    "examples,coverage,fuzzing",
                    "--max-time",
                    SECONDS,
                    "--suppress-health-check",
                    "all",
                ),
                *("--continue-on-failure", "--request-timeout", "30", "--no-color", "--seed", "7"),
                # Busy is no defect, nor is having no endpoint that can do what is asked.
                *("--exclude-path", "/health/ready", "--warnings", "off"),
            ]
            done = await asyncio.to_thread(
                subprocess.run, words, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            log = gw.log.read_text()
        failures = [
            line for line in done.stdout.splitlines() if line.startswith("[5") and "[503]" not in line
        ]
        assert failures == [], done.stdout[-6000:]
        assert "defect" not in log, log[-6000:]
        assert "Traceback" not in log, log[-6000:]
        assert "generated" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
