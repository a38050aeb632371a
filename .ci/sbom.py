"""The bill of materials of what is installed, as CycloneDX, made from a lock file: names, versions and hashes are all there.

python .ci/sbom.py requirements.lock > sbom.cdx.json
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ENTRY = re.compile(
    r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?:\s*;\s*([^\\\n]+))?((?:.*\n)(?:\s+.*\n?)*)", re.MULTILINE
)


def bill(lock: str) -> dict[str, Any]:
    """Of the text of a lock file. The same text gives the same bill: no time and no serial number are in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    components = [component(*entry) for entry in ENTRY.findall(lock)]
    product = {
        "type": "application",
        "bom-ref": "tidegate",
        "name": project["name"],
        "version": project["version"],
        "licenses": [{"license": {"id": project["license"]}}],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": product},
        "components": components,
    }


def component(name: str, version: str, marker: str, rest: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{re.sub('[-_.]+', '-', name).lower()}@{version}"
    hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", rest)
    files = [
        {"type": "distribution", "url": f"{purl}#{each}", "hashes": [{"alg": "SHA-256", "content": each}]}
        for each in hashes
    ]
    found = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "externalReferences": files,
    }
    if marker.strip():
        found["properties"] = [{"name": "python:marker", "value": marker.strip()}]
    return found


if __name__ == "__main__":
    json.dump(bill(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.stdout, indent=2)
