"""The tables of the READMEs that the code already holds: configuration, errors, metrics.

python tests/readme_tables.py           prints what would change, and exits with 1 where anything would
python tests/readme_tables.py --write   writes it
"""

from __future__ import annotations

import asyncio
import difflib
import re
import sys
import tempfile
from pathlib import Path

import httpx2

from gateway.app import application
from gateway.config import load
from gateway.config_reference import config_reference
from gateway.errors import ERRORS
from gateway.ledger import PAID_BY_GATEWAY, WASTE
from routing.failure import FAILURES
from routing.resume import RULES, Way

ROOT = Path(__file__).parents[1]
PAGES = tuple(ROOT / folder / "README.md" for folder in ("", "gateway", "routing", "backends", "loadtest"))
CONFIG = """
database: sqlite:///{folder}/tidegate.db
journal: {{folder: "{folder}/journal"}}
models:
  any:
    price: {{input: 0, output: 0}}
    endpoints: [{{openai: "http://127.0.0.1:9/v1"}}]
"""


def errors() -> str:
    lines = ["| Status | `code` | `type` | Meaning |", "|---|---|---|---|"]
    rows = sorted(ERRORS.items(), key=lambda row: row[1].status)
    lines += [f"| {kind.status} | `{code}` | `{kind.type}` | {kind.meaning} |" for code, kind in rows]
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """As the gateway shows them on /metrics."""
    page = asyncio.run(_metrics_page())
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    meanings = dict(re.findall(r"^# HELP (\S+) (.+)$", page, re.MULTILINE))
    lines = ["| Metric | Kind | Meaning |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {kinds[name]} | {meanings[name]} |"
        for name in sorted(meanings)
        if not name.endswith("_created")
    ]
    return "\n".join(lines) + "\n"


async def _metrics_page() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tidegate.yaml")
        path.write_text(CONFIG.format(folder=folder))
        async with application(load(path, {})) as app:
            transport = httpx2.ASGITransport(app.control)
            async with httpx2.AsyncClient(transport=transport, base_url="http://tidegate") as client:
                return (await client.get("/metrics")).raise_for_status().text


def waste() -> str:
    lines = ["| Waste | Borne by | What it is |", "|---|---|---|"]
    lines += [
        f"| `{cause}` | {'gateway' if cause in PAID_BY_GATEWAY else 'node'} | {meaning} |"
        for cause, meaning in WASTE.items()
    ]
    return "\n".join(lines) + "\n"


_LEFT = {
    "pause": "paused as long as it asks",
    "connect": "out at once",
    "connect_timeout": "out at once",
    "reset": "out at once",
    "engine_dead": "out at once",
    "model_missing": "out at once",
    None: "",
}


def failures() -> str:
    lines = [
        "| Failure | Shows as | Whose | Then | The endpoint is | Counts | Crash | Last word |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {row.shows} | {row.whose} | {row.then} | {_LEFT.get(row.leaves, 'out at the second')} "
        f"| {'yes' if row.wastes else ''} | {'yes' if row.crash else ''} | `{row.code}` |"
        for name, row in FAILURES.items()
    ]
    return "\n".join(lines) + "\n"


def resume() -> str:
    lines = [
        "| What the call is, or what has been shown | ids of the tokens known | only text known | because |",
        "|---|---|---|---|",
    ]
    for trait, rule in RULES.items():
        ways = [Way.TEXT.value if rule.text else "error"]
        ways.insert(0, Way.TOKENS.value if rule.tokens else ways[0])
        lines.append(f"| {trait.value} | {' | '.join(ways)} | {rule.why} |")
    return "\n".join(lines) + "\n"


TABLES = {
    "failures": failures,
    "config": config_reference,
    "errors": errors,
    "metrics": metrics,
    "resume": resume,
    "waste": waste,
}


def with_tables(pages: dict[Path, str]) -> dict[Path, str]:
    """The pages with every table as it should be. Raises ValueError where a marker is missing."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        marked = re.compile(f"{start}.*?{end}", re.DOTALL)
        places = [(path, place) for path, page in pages.items() for place in marked.findall(page)]
        if len(places) != 1:
            raise ValueError(f"there are {len(places)} places for the table {name}, not one")
        [(path, place)] = places
        pages = pages | {path: pages[path].replace(place, f"{start}\n{table()}\n{end}")}
    return pages


def main() -> int:
    are = {path: path.read_text() for path in PAGES}
    should_be = with_tables(are)
    if "--write" in sys.argv[1:]:
        for path, page in should_be.items():
            path.write_text(page)
        return 0
    for path, page in are.items():
        lines = page.splitlines(), should_be[path].splitlines()
        sys.stdout.writelines(
            f"{line}\n" for line in difflib.unified_diff(*lines, str(path), lineterm="", n=0)
        )
    return are != should_be


if __name__ == "__main__":
    sys.exit(main())
