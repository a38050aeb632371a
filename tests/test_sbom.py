"""The bill of materials holds exactly what the lock file does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-litellm.lock"])
def test_all_that_is_locked_is_in_it_with_version_and_hashes(lock: str):
    words = [sys.executable, ROOT / ".ci" / "sbom.py", ROOT / lock]
    bill = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    text = (ROOT / lock).read_text()
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE))
    assert {(each["name"], each["version"]) for each in bill["components"]} == locked
    hashes = [
        file["hashes"][0]["content"] for each in bill["components"] for file in each["externalReferences"]
    ]
    assert sorted(hashes) == sorted(re.findall(r"sha256:([0-9a-f]{64})", text))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert len({each["bom-ref"] for each in bill["components"]}) == len(bill["components"])
