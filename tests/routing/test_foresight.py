"""What plans expected, beside what came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing.foresight import Foresight

TOKENS = st.integers(0, 100_000)
SECONDS = st.floats(0, 1000)


@given(st.lists(st.tuples(TOKENS, TOKENS)))
def test_what_matched_is_never_more_than_what_was_predicted_or_reported(prompts: list[tuple[int, int]]):
    seen = Foresight()
    for predicted, reported in prompts:
        seen.cached(predicted, reported)
    assert seen.predicted_tokens == sum(predicted for predicted, _ in prompts)
    assert seen.reported_tokens == sum(reported for _, reported in prompts)
    assert seen.matched_tokens <= min(seen.predicted_tokens, seen.reported_tokens)


@given(st.lists(st.tuples(SECONDS, SECONDS)))
def test_errors_do_not_make_up_for_one_another(tokens: list[tuple[float, float]]):
    seen = Foresight()
    for expected_s, observed_s in tokens:
        seen.first_token(expected_s, observed_s)
    slack = 1e-6
    assert seen.ttft_error_s >= abs(seen.observed_ttft_s - seen.expected_ttft_s) - slack
    assert seen.ttft_error_s <= seen.observed_ttft_s + seen.expected_ttft_s + slack
