"""The dashboard and the alerts ask for what the gateway shows: every metric, every label, every value that is named."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml
from promql import NotPromQL, selected
from readme_tables import CONFIG

from gateway.app import application
from gateway.config import load
from gateway.errors import ERRORS
from gateway.ledger import WASTE

if TYPE_CHECKING:
    from collections.abc import Iterator

CHARTS = Path(__file__).parents[1] / "charts" / "tidegate"
DASHBOARDS = sorted((CHARTS / "dashboards").glob("*.json"))
ALERTS = sorted((CHARTS / "alerts").glob("*.yaml"))
SOURCES = "".join(
    path.read_text()
    for package in ("gateway", "backends", "routing")
    for path in (CHARTS.parents[1] / package).rglob("*.py")
)


class Query(NamedTuple):
    place: str
    expr: str
    shown: str
    """What its labels are put into."""


def queries() -> Iterator[Query]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield Query(f"{path.name}: {panel['title']}", target["expr"], target["legendFormat"])
    for path in ALERTS:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                said = " ".join(rule["annotations"].values())
                shown = " ".join("{{" + name + "}}" for name in re.findall(r"\$labels\.(\w+)", said))
                yield Query(f"{path.name}: {rule['alert']}", rule["expr"], shown)


QUERIES = list(queries())


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of each series that a gateway exposes, by its name."""
    folder = tmp_path_factory.mktemp("exposed")
    path = folder / "tidegate.yaml"
    path.write_text(CONFIG.format(folder=folder))
    return asyncio.run(_exposed(path))


async def _exposed(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    async with application(load(path, {})) as edge:
        for family in edge._telemetry.registry.collect():
            labels = set(family._labelnames)
            names = {"counter": ("_total",), "gauge": ("",)}.get(family.type, ("_sum", "_count"))
            found |= {f"{family.name}{end}": labels for end in names}
            if family.type == "histogram":
                found[f"{family.name}_bucket"] = labels | {"le"}
    return found


def test_there_are_a_dashboard_and_alerts():
    assert len(DASHBOARDS) == len(ALERTS) == 1
    assert len(QUERIES) > 50


@pytest.mark.parametrize("query", QUERIES, ids=[f"{query.place}" for query in QUERIES])
def test_every_query_asks_for_what_the_gateway_exposes(query: Query, exposed: dict[str, set[str]]):
    found = selected(query.expr)
    assert found.selectors
    for metric, matchers, ranged in found.selectors:
        assert metric in exposed
        assert {label for label, _, _ in matchers} <= exposed[metric]
        assert ranged == metric.endswith(("_total", "_bucket", "_sum", "_count")), metric
    kept: set[str] | None = None
    for labels, within in found.groupings:
        assert all(set(labels) <= exposed[each.metric] for each in within)
        kept = (kept or set()) | set(labels)
    if kept is None:
        kept = set.union(*(exposed[each.metric] for each in found.selectors))
    assert set(re.findall(r"\{\{(\w+)\}\}", query.shown)) <= kept


@pytest.mark.parametrize("query", QUERIES, ids=[f"{query.place}" for query in QUERIES])
def test_every_value_that_is_matched_is_one_that_the_code_knows(query: Query):
    for metric, matchers, _ in selected(query.expr).selectors:
        for label, operator, value in matchers:
            if value.startswith("$"):
                continue
            for each in value.split("|") if operator.endswith("~") else [value]:
                if label == "le":
                    assert f"{each}," in SOURCES
                elif each.endswith(".*"):
                    assert any(code.startswith(each[:-2]) for code in ERRORS)
                else:
                    assert f'"{each}"' in SOURCES or each in {*ERRORS, *WASTE}, f"{metric} {label} {each}"


def test_panels_stand_beside_one_another_and_every_alert_says_what_it_means():
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        cells = [
            (x, y)
            for panel in panels
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells))
        assert len({panel["id"] for panel in panels}) == len(panels)
    for path in ALERTS:
        rules = [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
        assert len({rule["alert"] for rule in rules}) == len(rules)
        for rule in rules:
            assert rule["labels"]["severity"] in {"info", "warning", "critical"}
            assert {"summary", "description"} == rule["annotations"].keys()


def test_prometheus_itself_takes_the_alerts_and_the_queries(tmp_path: Path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool (Debian's package prometheus has it)")
    rules = {"groups": [{"name": "all", "rules": []}]}
    for number, query in enumerate(QUERIES):
        expr = query.expr.replace("$__rate_interval", "5m")
        rules["groups"][0]["rules"].append({"record": f"query:{number}", "expr": expr})
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump(rules))
    for each in (path, *ALERTS):
        done = subprocess.run([promtool, "check", "rules", each], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "query",
    [
        "sum(",
        "rate(a)",
        "a b",
        "sum by a (b)",
        "histogram_quantile(0.5)",
        "a{b=}",
        "rate(a[5m]) >",
        "max(a))",
    ],
)
def test_what_is_no_promql_is_seen(query: str):
    with pytest.raises(NotPromQL):
        selected(query)
