import io
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loadtest.report import headline, latency_table, markdown_table, percentile, spread, summarise
from loadtest.sample import Sample


def sample(outcome="ok", *, intended=0.0, started=0.0, ended=1.0, first=None, last=None, tokens=0):
    return Sample(
        intended_s=intended,
        started_s=started,
        ended_s=ended,
        outcome=outcome,
        first_token_s=first,
        last_token_s=last,
        tokens=tokens,
        bytes=10,
    )


@given(st.lists(st.floats(allow_nan=False), min_size=1), st.floats(min_value=0.001, max_value=1))
def test_a_percentile_is_the_least_value_that_enough_of_them_do_not_exceed(values, fraction):
    ordered = sorted(values)
    found = percentile(ordered, fraction)
    assert sum(value <= found for value in ordered) >= fraction * len(ordered) - 1e-9
    assert sum(value < found for value in ordered) < fraction * len(ordered)


def test_no_values_have_no_percentile_and_no_spread():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
    assert spread([None, None]) is None


def test_latency_counts_from_the_intended_arrival_and_the_generators_lateness_is_shown():
    summary = summarise([sample(intended=1.0, started=1.5, ended=2.0, first=1.75)], elapsed_s=1.0)
    assert summary.duration.percentiles_ms["p50"] == pytest.approx(1000)
    assert summary.ttft.percentiles_ms["p50"] == pytest.approx(750)
    assert summary.lateness.max_ms == pytest.approx(500)


def test_time_per_output_token_leaves_the_first_token_out():
    assert sample(first=1.0, last=2.0, tokens=11).time_per_token_s == pytest.approx(0.1)
    assert sample(first=1.0, last=1.0, tokens=1).time_per_token_s is None


def test_errors_are_counted_by_kind_and_stay_out_of_the_latencies():
    samples = [
        sample(),
        sample("reset", ended=99.0),
        sample("status_503"),
        sample("reset"),
        sample("aborted"),
    ]
    summary = summarise(samples, elapsed_s=2.0)
    assert (summary.calls, summary.ok, summary.aborted) == (5, 1, 1)
    assert summary.errors == {"reset": 2, "status_503": 1}
    assert summary.duration.max_ms == pytest.approx(1000)
    assert summary.calls_per_s == pytest.approx(0.5)
    assert "reset 2, status_503 1" in headline(summary)


def test_a_summary_is_a_table_for_people_and_json_for_programs():
    summary = summarise([sample(first=0.2, last=0.9, tokens=8)], elapsed_s=1.0)
    out = io.StringIO()
    Console(file=out, width=150).print(latency_table(summary))
    assert "time to first token" in out.getvalue()
    parsed = json.loads(msgspec.json.encode(summary))
    assert parsed["ttft"]["percentiles_ms"].keys() == {"p50", "p90", "p95", "p99", "p99.9"}


def test_a_markdown_table_has_one_line_a_row():
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
