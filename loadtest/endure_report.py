"""What an endurance run has found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from loadtest.report import markdown_table

if TYPE_CHECKING:
    from loadtest.endurance import Outcome

_MOST = 20


def rows(outcome: Outcome) -> list[tuple[str, str, str]]:
    """What was looked at, what was found, and what it should be where that is one figure."""
    found, tokens = outcome.reckoning, outcome.reckoning.tokens
    wrong = found.wrong
    return [
        ("calls", f"{outcome.calls:,}", ""),
        ("answered as by an undisturbed worker", f"{outcome.answered:,}", ""),
        (
            "of these: streams / embeddings / with turns before",
            f"{outcome.streams:,} / {outcome.embeddings:,} / {outcome.turns:,}",
            "",
        ),
        ("left by their clients", f"{outcome.left:,}", ""),
        ("rightly refused, over a budget or a rate", f"{sum(outcome.refused.values()):,}", ""),
        ("failures that a client saw", f"{len(outcome.failures):,}", "0"),
        ("sent anew, a kept connection being closed as they were sent", f"{outcome.sent_again:,}", ""),
        ("longest silence of a stream, s", f"{outcome.longest_silence_s:.1f}", ""),
        ("usage rows in the ledger", f"{found.rows:,}", ""),
        (
            "tokens as clients were told / as the ledger has them",
            f"{tokens.clients:,} / {tokens.ledger:,}",
            "equal",
        ),
        (
            "of calls that one worker answered: ledger / workers",
            f"{tokens.ledger_of_those:,} / {tokens.workers:,}",
            "equal",
        ),
        ("calls that several workers worked for", f"{found.shared:,}", ""),
        ("their pieces: as workers counted / estimated", f"{found.shares:,} / {found.estimated:,}", ""),
        ("differences, call by call", f"{len(wrong):,}", "0"),
        ("left behind: holds, calls, processes, descriptors, journals", f"{len(outcome.left_behind):,}", "0"),
        (
            "largest replica before its first restart / after the last, MB",
            f"{outcome.first_peak_mb:.0f} / {outcome.last_peak_mb:.0f}",
            "",
        ),
    ]


def title(outcome: Outcome) -> str:
    plan, done = outcome.plan, outcome.carried_out
    replicas = f"{plan.replicas} replicas of {plan.processes} processes, {plan.workers} workers, {plan.clients} clients"
    befell = ", ".join(f"{number} x {what}" for what, number in done.items())
    return f"{replicas}, {outcome.seconds / 60:.1f} minutes; {befell}"


def table(outcome: Outcome) -> Table:
    made = Table(title=title(outcome), title_justify="left")
    made.add_column("what")
    made.add_column("found", justify="right")
    made.add_column("wanted", justify="right")
    for what, found, wanted in rows(outcome):
        made.add_row(what, found, wanted)
    return made


def markdown(outcome: Outcome) -> str:
    """Title and table, as a README wants them."""
    return f"{title(outcome)}:\n\n{markdown_table(('what', 'found', 'wanted'), rows(outcome))}\n"


def notes(outcome: Outcome) -> list[str]:
    """What was wrong, and what the run did not show."""
    refused = [f"rightly refused: {number} {what}" for what, number in outcome.refused.items()]
    failures = [f"FAILURE: {each}" for each in outcome.failures[:_MOST]]
    if len(outcome.failures) > _MOST:
        failures.append(f"and {len(outcome.failures) - _MOST} more failures")
    return [
        *refused,
        *failures,
        *(f"DIFFERENCE: {each}" for each in outcome.reckoning.wrong),
        *(f"LEFT BEHIND: {each}" for each in outcome.left_behind),
        *(f"IN DOUBT: {each}" for each in outcome.doubts),
    ]
