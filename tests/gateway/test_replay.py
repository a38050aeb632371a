"""The decision log planned again: by itself, and against other endpoints, prices and tiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import structs

from gateway.catalog import Catalog
from gateway.config import Config
from gateway.decision_log import Ended, Line
from gateway.fleet import fleet_of
from gateway.replay import Report, Settings, replay
from routing.decision import Decision
from routing.types import Call, Endpoint, Load, Price, Tier

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT = Tier("default", 5.0, 4e9 / 3600)
ENDED = Ended("ok", 200, "cheap", 1, 0.1, 0.5, 100, 0, 10)


def endpoint(name: str, usd_per_million: int) -> Endpoint:
    return Endpoint(name, "llama", "llama", cost=Price(usd_per_million * 10**6, usd_per_million * 10**6))


def line(call_id: str = "call-1", model: str = "llama", tier: Tier = DEFAULT) -> Line:
    """A cheap endpoint that is slow and a dear one that is fast: what waiting is worth decides."""
    snapshot = (
        (endpoint("cheap", 1), Load(work_per_s=1000.0, itl_s=0.05)),
        (endpoint("dear", 50), Load(work_per_s=100_000.0, itl_s=0.001)),
    )
    decision = Decision(Call("llama", tier, 1000), snapshot, 0.5, 100.0)
    ranked = [(each.endpoint.name, each.score_nano_usd) for each in decision.plan().ranked]
    return Line(1_700_000_000_000, call_id, "acme", "chat", False, model, decision, ranked, ENDED)


def replayed(lines: Sequence[Line], settings: Settings | None = None) -> Report:
    return replay([msgspec.json.encode(each) + b"\n" for each in lines], settings)


def settings(*endpoints: dict[str, Any], **sections: Any) -> Settings:
    listed = [{"worker": f"http://10.0.0.{place}:8000", **each} for place, each in enumerate(endpoints)]
    model = {"aliases": ["small"], "price": {"input": 1, "output": 1}, "endpoints": listed}
    config = Config.model_validate({"models": {"llama": model}, **sections})
    return Settings(Catalog(config, 0), fleet_of(config))


CHEAP: dict[str, Any] = {"name": "cheap", "cost": {"input": 1, "output": 1}}
DEAR: dict[str, Any] = {"name": "dear", "cost": {"input": 50, "output": 50}}


def test_by_itself_every_decision_makes_the_very_ranking_that_is_in_the_log():
    report = replayed([line("a"), line("b")])
    assert (report.decisions, report.same, report.different_calls, report.after) == (2, 2, [], None)
    assert (report.before.plans, report.before.unserved, report.before.late) == (2, 0, 0)
    assert report.before.cost_nano_usd == 2 * 1100 * 1000
    assert report.before.ttft_p50_s == report.before.ttft_p99_s == pytest.approx(1.0, rel=0.02)
    assert report.before.call_mean_s == pytest.approx(1.0 + 100 * 0.05, rel=0.02)


def test_a_ranking_that_comes_out_otherwise_is_told_by_its_call():
    changed = structs.replace(line("b"), ranked=[("dear", 1.0), ("cheap", 2.0)])
    report = replayed([line("a"), changed])
    assert (report.same, report.different_calls) == (1, ["b"])


def test_lines_that_are_none_are_counted_and_hold_nothing_up():
    whole = msgspec.json.encode(line())
    report = replay([whole + b"\n", b"\n", whole[:-20] + b"\n", b"\xff\n", b'{"decision": 1}\n', whole])
    assert (report.decisions, report.unreadable) == (2, 3)


def test_the_same_settings_change_nothing():
    report = replayed([line("a"), line("b")], settings(CHEAP, DEAR))
    assert report.changed == 0
    assert report.after == report.before
    assert [(each.endpoint, each.before, each.after) for each in report.shares] == [("cheap", 2, 2)]


def test_dearer_waiting_moves_calls_to_the_fast_endpoint_at_a_price():
    tiers = {"default": {"waiting_usd_per_hour": 1000}}
    report = replayed([line("a"), line("b")], settings(CHEAP, DEAR, tiers=tiers))
    assert report.changed == 2
    assert report.after.cost_nano_usd == 50 * report.before.cost_nano_usd
    assert report.after.ttft_mean_s < report.before.ttft_mean_s / 10
    assert [(each.endpoint, each.before, each.after) for each in report.shares] == [
        ("cheap", 2, 0),
        ("dear", 0, 2),
    ]


def test_a_target_that_nobody_meets_makes_calls_late():
    # At four thousand tokens a second the prompt adds a quarter of a second to it.
    report = replayed([line()], settings(CHEAP, tiers={"default": {"max_ttft_ms": 1}}))
    assert (report.before.late, report.after.late) == (0, 1)


def test_an_endpoint_that_is_gone_is_not_chosen_and_a_new_one_is_taken_as_idle():
    new = {"name": "new", "gpu": "h100", "cost": {"input": 0, "output": 0}}
    report = replayed([line()], settings(DEAR, new))
    assert [(each.endpoint, each.before, each.after) for each in report.shares] == [
        ("cheap", 1, 0),
        ("new", 0, 1),
    ]


def test_a_name_that_stands_for_another_model_is_planned_over_idle_endpoints_with_empty_caches():
    asked = line(model="smart")
    cached = structs.replace(asked.decision, cached_tokens={"cheap": 900})
    other = {"price": {"input": 1, "output": 1}, "endpoints": [{"worker": "http://10.0.0.9:8000", **CHEAP}]}
    config = Config.model_validate({"models": {"other": other}, "aliases": {"smart": {"default": "other"}}})
    applied = Settings(Catalog(config, 0), fleet_of(config)).applied(structs.replace(asked, decision=cached))
    ((_, load),) = applied.snapshot
    assert (applied.call.model, load.inflight, applied.cached_tokens) == ("other", 0, {})


def test_what_a_call_insists_on_may_leave_it_unserved_elsewhere():
    asked = line()
    call = structs.replace(
        asked.decision.call, demands=structs.replace(asked.decision.call.demands, only=frozenset({"cheap"}))
    )
    asked = structs.replace(asked, decision=structs.replace(asked.decision, call=call))
    report = replayed([asked], settings(DEAR))
    assert (report.after.unserved, report.changed) == (1, 1)


def test_names_are_looked_up_as_the_client_wrote_them():
    assert replayed([line(model="small:nitro")], settings(CHEAP, DEAR)).changed == 1
    report = replayed([line("a"), line("b", model="gone")], settings(CHEAP, DEAR))
    assert (report.decisions, report.without_model, report.after.plans, report.before.plans) == (2, 1, 1, 1)


def test_a_log_without_lines_is_no_error():
    report = replay([], settings(CHEAP))
    assert (report.decisions, report.after.plans, report.after.ttft_p99_s) == (0, 0, 0.0)
