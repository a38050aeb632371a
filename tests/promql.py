"""Enough of PromQL to read our own queries: what they select, by which labels, and whether they are well formed.

    selected(query)     every selector in it, with the labels it is matched and grouped by

Raises NotPromQL for what it cannot read; it is stricter than Prometheus, never laxer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)|(?P<range>\[(?:\d+[smhd]|\$__rate_interval)\])
    |(?P<string>"[^"]*")|(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)|(?P<op>==|!=|>=|<=|=~|!~|[-+*/%<>=(){},]))""",
    re.VERBOSE,
)
_AGGREGATIONS = {"sum", "max", "min", "avg", "count"}
_OF_RANGES = {"rate", "increase"}
_FUNCTIONS = {"absent": 1, "abs": 1, "scalar": 1, "histogram_quantile": 2}
_OPERATORS = {"+", "-", "*", "/", "==", "!=", ">", "<", ">=", "<="}


class NotPromQL(Exception):
    pass


class Selector(NamedTuple):
    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    """Label, operator, value."""
    ranged: bool


class Selected:
    def __init__(self) -> None:
        self.selectors: list[Selector] = []
        self.groupings: list[tuple[tuple[str, ...], list[Selector]]] = []
        """What aggregations keep, and of which selectors."""


def selected(query: str) -> Selected:
    reader = _Reader(query)
    reader.expression()
    reader.expect_end()
    return reader.found


class _Reader:
    def __init__(self, query: str) -> None:
        self.found = Selected()
        self._tokens: list[tuple[str, str]] = []
        self._at = 0
        place = 0
        while query[place:].strip():
            token = _TOKEN.match(query, place)
            if token is None:
                raise NotPromQL(f"at {query[place:]!r}")
            self._tokens.append((token.lastgroup, token[token.lastgroup]))
            place = token.end()

    def expression(self) -> None:
        self._primary()
        while self._peek()[1] in _OPERATORS:
            self._next()
            self._primary()

    def expect_end(self) -> None:
        if self._peek()[0]:
            raise NotPromQL(f"{self._peek()[1]!r} is too much")

    def _primary(self) -> None:
        kind, text = self._next()
        if kind == "number":
            return
        if text == "(":
            self.expression()
            self._expect(")")
        elif kind != "name":
            raise NotPromQL(f"{text!r} where a value should be")
        elif text in _AGGREGATIONS:
            self._aggregation()
        elif text in _OF_RANGES:
            self._expect("(")
            self._selector(self._next()[1], ranged=True)
            self._expect(")")
        elif text in _FUNCTIONS:
            self._expect("(")
            for number in range(_FUNCTIONS[text]):
                if number:
                    self._expect(",")
                self.expression()
            self._expect(")")
        else:
            self._selector(text, ranged=False)

    def _aggregation(self) -> None:
        labels: tuple[str, ...] = ()
        if self._peek()[1] == "by":
            self._next()
            labels = self._labels()
        before = len(self.found.selectors)
        self._expect("(")
        self.expression()
        self._expect(")")
        self.found.groupings.append((labels, self.found.selectors[before:]))

    def _labels(self) -> tuple[str, ...]:
        self._expect("(")
        labels = [self._next()[1]]
        while self._peek()[1] == ",":
            self._next()
            labels.append(self._next()[1])
        self._expect(")")
        return tuple(labels)

    def _selector(self, metric: str, *, ranged: bool) -> None:
        matchers = []
        if self._peek()[1] == "{":
            self._next()
            while True:
                label, operator, value = self._next()[1], self._next()[1], self._next()[1]
                matchers.append((label, operator, value.strip('"')))
                if self._next()[1] == "}":
                    break
        if ranged and self._next()[0] != "range":
            raise NotPromQL(f"{metric} wants a range there")
        self.found.selectors.append(Selector(metric, tuple(matchers), ranged))

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        if not token[0]:
            raise NotPromQL("it ends too soon")
        self._at += 1
        return token

    def _expect(self, text: str) -> None:
        if self._next()[1] != text:
            raise NotPromQL(f"{text!r} is missing")
