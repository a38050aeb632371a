"""What pip-audit has found (`-f json`), for .ci/run: exit code 1 where something that is locked has a known vulnerability.

Where its database cannot be reached it says so rather than pass: `pip-audit` itself ends with 0 where nothing could be looked up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(found: Path) -> int:
    try:
        dependencies = json.loads(found.read_text(encoding="utf-8"))["dependencies"]
    except (OSError, ValueError, KeyError):
        print("SKIPPED: known vulnerabilities, since pip-audit could not ask its database; its words:")
        return 0
    unknown = [each["name"] for each in dependencies if "skip_reason" in each]
    if len(unknown) == len(dependencies):
        print(
            "SKIPPED: known vulnerabilities, since none of the packages is in the database that can be reached here"
        )
    elif unknown:
        print(f"SKIPPED: known vulnerabilities of {', '.join(unknown)}, which the database does not have")
    bad = [(each, flaw) for each in dependencies for flaw in each.get("vulns", ())]
    for each, flaw in bad:
        print(
            f"{each['name']} {each['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none'}"
        )
    print(f"{len(dependencies) - len(unknown)} packages looked up, {len(bad)} vulnerabilities")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
