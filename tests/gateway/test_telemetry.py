"""The page of metrics, read back with Prometheus' own parser."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from math import inf
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from usage_rows import a_row, a_share

from backends.fleet import Fleet, FleetSettings
from backends.worker import Access
from gateway.errors import ERRORS
from gateway.journal import Journal
from gateway.ledger import WASTE
from gateway.telemetry import OVERHEAD_BUCKETS_S, FleetCollector, Telemetry
from gateway.telemetry_models import DURATION_BUCKETS_S, TTFT_BUCKETS_S
from routing.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.ledger import UsageRow

patiently = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])

MODELS = ("llama", 'a "quoted" one\\', "größer")
TIERS = ("priority", "default", "flex")
OUTCOMES = ("ok", "client_left", *ERRORS)
SENT = st.sampled_from(["SENT-acme", 'SENT-\n"x" 1\n# TYPE', "SENT-ü"])
"""What a client can choose, or what is too manifold for a label."""
TOKENS = st.integers(0, 100_000)
SECONDS = st.sampled_from([0.0, 0.02, 0.05, 0.25, 60.0, 600.0]) | st.floats(0, 1000)
ROWS = st.lists(
    st.builds(
        a_row,
        SENT,
        request_id=SENT,
        tenant=SENT,
        key_id=SENT,
        endpoint=SENT,
        model=st.sampled_from(MODELS),
        tier=st.sampled_from(TIERS),
        outcome=st.sampled_from(OUTCOMES),
        prompt_tokens=TOKENS,
        cached_tokens=TOKENS,
        completion_tokens=TOKENS,
        estimated=st.booleans(),
        ttft_ms=st.none() | SECONDS.map(lambda seconds: seconds * 1000),
        duration_ms=SECONDS.map(lambda seconds: seconds * 1000),
        charge_nano_usd=TOKENS,
        cost_nano_usd=TOKENS,
        shares=st.lists(
            st.builds(
                a_share,
                SENT,
                st.sampled_from(["answer", *WASTE]),
                model=st.sampled_from(MODELS),
                prompt_tokens=TOKENS,
                completion_tokens=TOKENS,
                waste_nano_usd=TOKENS,
            ),
            max_size=3,
        ).map(tuple),
    ),
    max_size=12,
)

Labels = frozenset[tuple[str, str]]


def read(page: bytes) -> dict[str, dict[Labels, float]]:
    """Every sample by its name and labels. Each may stand there only once."""
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            assert labels not in found[sample.name], sample
            found[sample.name][labels] = sample.value
    return found


def sums(rows: Iterable[UsageRow], *fields: str, **amounts: str) -> dict[Labels, float]:
    """What the rows add up to: one for each row, or the field named by each amount, by labels."""
    totals: Counter[Labels] = Counter()
    for row in rows:
        labels = frozenset((field, getattr(row, field)) for field in fields)
        if not amounts:
            totals[labels] += 1
        for kind, field in amounts.items():
            totals[labels | {("kind", kind)}] += getattr(row, field)
    return dict(totals)


def filled(rows: Iterable[UsageRow]) -> Telemetry:
    telemetry = Telemetry()
    for row in rows:
        telemetry.ended(row)
    return telemetry


@patiently
@given(ROWS)
def test_the_page_adds_up_to_the_rows(rows: list[UsageRow]):
    found = read(filled(rows).page())
    assert found["tidegate_calls_total"] == sums(rows, "model", "tier", "outcome")
    assert found["tidegate_tokens_total"] == sums(
        rows, "model", prompt="prompt_tokens", cached="cached_tokens", completion="completion_tokens"
    )
    assert found["tidegate_money_nano_usd_total"] == sums(
        rows, "model", charge="charge_nano_usd", cost="cost_nano_usd"
    )
    shares = [share for row in rows for share in row.shares if share.purpose != "answer"]
    assert sum(found["tidegate_waste_nano_usd_total"].values()) == sum(s.waste_nano_usd for s in shares)
    for labels, tokens in found["tidegate_waste_tokens_total"].items():
        of = dict(labels)
        mine = [s for s in shares if (s.model, s.purpose) == (of["model"], of["cause"])]
        assert tokens == sum(getattr(share, f"{of['kind']}_tokens") for share in mine)
    estimated = dict.fromkeys(sums(rows, "model"), 0) | sums((r for r in rows if r.estimated), "model")
    assert found["tidegate_calls_estimated_total"] == estimated
    assert found["tidegate_call_seconds_count"] == sums(rows, "model")
    streams = sums((row for row in rows if row.ttft_ms is not None), "model")
    assert {labels: n for labels, n in found["tidegate_ttft_seconds_count"].items() if n} == streams


@patiently
@given(ROWS)
def test_nothing_that_a_client_sends_becomes_a_label(rows: list[UsageRow]):
    page = filled(rows).page()
    assert b"SENT" not in page
    allowed = {
        "model": {*MODELS},
        "tier": {*TIERS},
        "outcome": {*OUTCOMES},
        "cause": {*WASTE},
        "borne_by": {"gateway", "node"},
    }
    for name, samples in read(page).items():
        for label, value in (pair for labels in samples for pair in labels):
            assert label in {"le", "kind"} or value in allowed[label], f"{name}: {label}"


@patiently
@given(ROWS)
def test_a_histogram_counts_what_lies_at_or_below_each_bound(rows: list[UsageRow]):
    found = read(filled(rows).page())
    for name, field, bounds in (
        ("tidegate_ttft_seconds", "ttft_ms", TTFT_BUCKETS_S),
        ("tidegate_call_seconds", "duration_ms", DURATION_BUCKETS_S),
    ):
        for model in {row.model for row in rows}:
            given_ms = [getattr(row, field) for row in rows if row.model == model]
            values = [ms / 1000 for ms in given_ms if ms is not None]
            buckets = {
                float(dict(labels)["le"]): count
                for labels, count in found[f"{name}_bucket"].items()
                if ("model", model) in labels
            }
            assert buckets == {bound: sum(value <= bound for value in values) for bound in (*bounds, inf)}
            labels = frozenset({("model", model)})
            assert found[f"{name}_count"][labels] == len(values)
            assert found[f"{name}_sum"][labels] == pytest.approx(sum(values))


@patiently
@given(st.lists(SECONDS))
def test_overhead_has_its_histogram_from_the_start(values: list[float]):
    telemetry = Telemetry()
    for value in values:
        telemetry.overhead_s.add(value)
    found = read(telemetry.page())
    buckets = {
        float(dict(labels)["le"]): n for labels, n in found["tidegate_overhead_seconds_bucket"].items()
    }
    assert buckets == {b: sum(value <= b for value in values) for b in (*OVERHEAD_BUCKETS_S, inf)}
    assert found["tidegate_overhead_seconds_sum"] == {frozenset(): pytest.approx(sum(values))}


def test_defects_are_counted_from_nought():
    telemetry = filled([a_row("c")])
    assert read(telemetry.page())["tidegate_defects_total"] == {frozenset(): 0}
    telemetry.ended(a_row("d", outcome="internal_error"))
    assert read(telemetry.page())["tidegate_defects_total"] == {frozenset(): 1}


def test_refusals_are_counted_by_code():
    telemetry = Telemetry()
    telemetry.refused["invalid_json"] += 3
    found = read(telemetry.page())
    assert found["tidegate_requests_refused_total"] == {frozenset({("code", "invalid_json")}): 3}


def test_large_sums_are_not_cut_short_in_print():
    telemetry = filled([a_row("c", charge_nano_usd=9_007_199_254_740_991)])
    found = read(telemetry.page())["tidegate_money_nano_usd_total"]
    assert found[frozenset({("model", "llama"), ("kind", "charge")})] == 9_007_199_254_740_991


async def test_fleet_and_journal_are_shown_as_they_are_at_the_moment(tmp_path: Path):
    endpoints = [Endpoint(name, "llama", "m") for name in ("w1", "w2")]
    fleet = Fleet({"llama": [(e, Access("http://127.0.0.1:1")) for e in endpoints]}, FleetSettings())
    journal = Journal.open(tmp_path)
    running = 3
    telemetry = Telemetry()
    telemetry.registry.register(FleetCollector(fleet, journal, None, lambda: running))
    row = a_row("c")
    journal.append(row)
    sick, well = fleet.member(endpoints[0]), fleet.member(endpoints[1])
    sick.ejection.failed(time.monotonic(), "connect", 0.5)
    sick.ejection.health(time.monotonic(), ok=False)  # which lasts, where an ejection passes
    well.inflight = 2
    for outcome in ("ok", "upstream_busy", "ok"):
        well.counted(outcome)
    sick.changed()
    well.changed()

    def by_endpoint(name: str) -> dict[str, float]:
        return {
            dict(labels)["endpoint"]: value for labels, value in found[f"tidegate_endpoint_{name}"].items()
        }

    found = read(telemetry.page())
    assert by_endpoint("available") == {"w1": 0, "w2": 1}
    assert by_endpoint("inflight") == {"w1": 0, "w2": 2}
    assert by_endpoint("connections") == {"w1": 0, "w2": 0}
    assert by_endpoint("ejections_total") == {"w1": 1, "w2": 0}
    assert by_endpoint("failed_checks_total") == {"w1": 1, "w2": 0}
    here = {("model", "llama"), ("endpoint", "w2")}
    assert found["tidegate_attempts_total"] == {
        frozenset({*here, ("outcome", "ok")}): 2,
        frozenset({*here, ("outcome", "upstream_busy")}): 1,
    }
    assert min(by_endpoint("prefill_tokens_per_second").values()) > 0
    alone = {name: samples[frozenset()] for name, samples in found.items() if frozenset() in samples}
    assert alone["tidegate_calls_running"] == 3
    assert (
        alone["tidegate_journal_waiting_bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir()) > 0
    )
    assert alone["tidegate_journal_backlog_rows"] == alone["tidegate_journal_lost_rows_total"] == 0
    running = 0
    assert read(telemetry.page())["tidegate_calls_running"][frozenset()] == 0
    journal.close()
    for segment in journal.segments:
        segment.release()
