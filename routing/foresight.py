"""How well plans see ahead: what was expected of endpoints, beside what came."""

from __future__ import annotations

from routing.distribution import Distribution

RATIO_BOUNDS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2, 4, 10)
LEAST_S = 0.001
"""Less is not expected of anybody where ratios are taken."""


class Foresight:
    """Of the calls to one model."""

    def __init__(self) -> None:
        self.ttft_ratio = Distribution(RATIO_BOUNDS)
        """The time to first token as it came, by what was expected."""
        self.expected_ttft_s = 0.0
        self.observed_ttft_s = 0.0
        self.ttft_error_s = 0.0
        """How far apart the two were."""
        self.predicted_tokens = 0
        """Of prompts, that were to be in the cache of the endpoint."""
        self.reported_tokens = 0
        """That it said were."""
        self.matched_tokens = 0
        """Those of a prompt that were both."""

    def first_token(self, expected_s: float, observed_s: float) -> None:
        """A first token has come."""
        self.ttft_ratio.add(observed_s / max(expected_s, LEAST_S))
        self.expected_ttft_s += expected_s
        self.observed_ttft_s += observed_s
        self.ttft_error_s += abs(observed_s - expected_s)

    def cached(self, predicted_tokens: int, reported_tokens: int) -> None:
        """An endpoint has said how much of a prompt was in its cache."""
        self.predicted_tokens += predicted_tokens
        self.reported_tokens += reported_tokens
        self.matched_tokens += min(predicted_tokens, reported_tokens)
