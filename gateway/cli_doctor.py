"""`tidegate doctor`: what is wrong with a configuration and all that it names, and what to do about each of it."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import typer

from gateway.cli_options import DEFAULT_CONFIG, ConfigOption, ReportFormatOption, unfolded
from gateway.config_file import ConfigError
from gateway.output import ReportFormat
from gateway.waiting import waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.checkup import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@unfolded
def doctor(
    config: ConfigOption = DEFAULT_CONFIG,
    output: ReportFormatOption = ReportFormat.TABLE,
) -> None:
    """Look at the configuration and all that it names: database, Redis, endpoints, clocks, folders, limits.

    Exit code 0: a gateway can serve with it (there may be warnings); 1: something does not work; 2: the file is not valid.
    A worker is asked for one token. Nothing is changed anywhere.
    """
    from backends.checkup import Finding  # noqa: PLC0415 - takes time to import
    from gateway.config import load  # noqa: PLC0415 - as above
    from gateway.doctor import examine  # noqa: PLC0415 - as above

    try:
        parsed = load(config, os.environ)
    except ConfigError as error:
        advice = f"correct {config}; `tidegate check` looks at nothing else"
        _show(
            [Finding(each.path or "config", "error", each.message, advice) for each in error.problems], output
        )
        raise typer.Exit(2) from None
    with waiting("asking the database, Redis and every endpoint"):
        found = asyncio.run(examine(parsed))
    _show([Finding("config", "ok", f"{config} is valid"), *found], output)
    if any(finding.level == "error" for finding in found):
        raise typer.Exit(1)


def _show(found: Sequence[Finding], output: ReportFormat) -> None:
    if output is ReportFormat.JSON:
        healthy = all(finding.level != "error" for finding in found)
        findings = [{name: getattr(each, name) for name in each.__struct_fields__} for each in found]
        typer.echo(json.dumps({"healthy": healthy, "findings": findings}, indent=2, ensure_ascii=False))
        return
    width = max(len(finding.about) for finding in found)
    for finding in found:
        typer.secho(f"{finding.level:7}", fg=_COLOURS[finding.level], nl=False)
        typer.echo(f"  {finding.about:{width}}  {finding.found}")
        if finding.advice:
            typer.echo(f"{'':9}{'':{width}}  -> {finding.advice}")
    counts = {level: sum(finding.level == level for finding in found) for level in ("error", "warning")}
    typer.echo(
        ", ".join(f"{count or 'no'} {level}{'' if count == 1 else 's'}" for level, count in counts.items())
    )
