"""`tidegate explain`: where a call would go and why, by a configuration alone or by a gateway that runs; and decisions
from the log planned again.

By a configuration alone, nobody is asked: every endpoint is taken as idle and as fast as its GPU lets one guess.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gateway.cli_options import DEFAULT_CONFIG, ReportFormatOption, open_store, unfolded
from gateway.output import Format, ReportFormat, show, usd
from gateway.waiting import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.auth import Keyring
    from gateway.config import Config
    from gateway.explain import Explanation, Question
    from gateway.openai import Api
    from gateway.policy import Policies
    from gateway.replay import Expected, Report

_APIS: tuple[Api, ...] = ("chat", "completions", "embeddings")
_CANDIDATES = (
    *(
        "place",
        "endpoint",
        "ttft_s",
        "ms_per_token",
        "imposed_s",
        "cached_tokens",
        "cost_usd",
        "score_usd",
        "on_time",
    ),
)
_REJECTED = ("endpoint", "filter", "reason", "retry_after_s")
_ASK_LIMIT_S = 30.0


@unfolded
def explain(  # noqa: PLR0913 - a command's options are its parameters
    request: Annotated[
        str | None, typer.Argument(metavar="REQUEST.json", help="The body of a call; -: standard input.")
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(help="Plan by this configuration (tidegate.yaml); with --replay, against it."),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Ask the gateway that runs there instead.")] = None,
    key: Annotated[
        str | None, typer.Option(envvar="TIDEGATE_MASTER_KEY", help="With --url: its master key.")
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(_APIS)}; without it, told by the fields of the body."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="A header of the call, `name: value`; may be repeated.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose call it is; the tenant's policy then bounds it.")] = "",
    key_id: Annotated[
        str, typer.Option(help="The id of the key it is made with; its policy bounds it as well.")
    ] = "",
    replay: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Plan the decisions in a decision log again; -: standard input."),
    ] = None,
    output: ReportFormatOption = ReportFormat.TABLE,
) -> None:
    """Where a call would go and why: every estimate, every rejection. Or decisions from the log, planned again."""
    from msgspec import structs  # noqa: PLC0415 - takes time to import, as all that is imported below

    if (request is None) == (replay is None):
        _fail("needs REQUEST.json or --replay FILE, and not both")
    if replay is not None:
        with waiting(f"planning the decisions in {replay} again"):
            report = _replayed(replay, config)
        _show_report(report, output)
        return
    question = _question(request or "-", api, header or ())
    question = structs.replace(question, tenant=tenant or question.tenant, key=key_id or question.key)
    if url is not None:
        _show_plan(_asked(url, key, question), output)
    else:
        _show_plan(_planned(config or DEFAULT_CONFIG, question), output)


def _question(request: str, api: str | None, headers: Sequence[str]) -> Question:
    from msgspec import structs  # noqa: PLC0415 - see above

    from gateway.errors import ApiError  # noqa: PLC0415 - see above
    from gateway.explain import Question  # noqa: PLC0415 - see above

    try:
        question = Question.read(b"".join(_lines(request)))
    except ApiError as error:
        _fail(f"{request}: {error.message}")
    known = next((each for each in _APIS if each == api), None)
    if api is not None and known is None:
        _fail(f"--api is one of {', '.join(_APIS)}, not {api!r}")
    given = dict(question.headers)
    for line in headers:
        name, colon, value = line.partition(":")
        if not colon or not line.isascii():
            _fail(f"--header takes `name: value`, not {line!r}")
        given[name.strip().lower().encode()] = value.strip().encode()
    return structs.replace(question, api=known or question.api, headers=given)


def _planned(config: Path, question: Question) -> Explanation:
    from msgspec import structs  # noqa: PLC0415 - see above

    from gateway.cache_salt import CacheSalts  # noqa: PLC0415 - see above
    from gateway.catalog import Catalog  # noqa: PLC0415 - see above
    from gateway.config import load  # noqa: PLC0415 - see above
    from gateway.errors import ApiError  # noqa: PLC0415 - see above
    from gateway.explain import Explanation  # noqa: PLC0415 - see above
    from gateway.fleet import fleet_of  # noqa: PLC0415 - see above
    from gateway.planning import Planner  # noqa: PLC0415 - see above
    from gateway.policy import policies_of  # noqa: PLC0415 - see above

    parsed = load(config, os.environ)
    catalog = Catalog(parsed, 0)
    # Which salt keeps a prompt apart makes no difference where nothing is cached yet.
    planner = Planner(fleet_of(parsed), CacheSalts(b""))
    policies = policies_of(parsed, catalog)
    try:
        caller = question.caller(_keys(parsed, config, policies, needed=bool(question.key)))
        decisions = question.decisions(catalog, caller, planner)
    except ApiError as error:
        _fail(f"the gateway would refuse it: {error.message} ({error.code})")
    # The same file always gives the same plan.
    return Explanation.of(caller, *(structs.replace(each, roll=0.0) for each in decisions))


def _keys(parsed: Config, config: Path, policies: Policies, *, needed: bool) -> Keyring:
    """Those in the database that the configuration names. It is not made for the sake of a tenant's policy in it."""
    from gateway.auth import Keyring  # noqa: PLC0415 - see above

    file = parsed.database.get_secret_value().removeprefix("sqlite:///")
    if not needed and not Path(file).exists():
        return Keyring(b"", policies=policies)
    with open_store(config) as store:
        return Keyring.read(store, policies=policies)


def _asked(url: str, key: str | None, question: Question) -> Explanation:
    import httpx2  # noqa: PLC0415 - see above
    from pydantic import ValidationError  # noqa: PLC0415 - see above

    from gateway.explain import Explanation  # noqa: PLC0415 - see above

    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    place = f"{url.rstrip('/').removesuffix('/v1')}/admin/explain"
    try:
        reply = httpx2.post(place, content=question.encoded(), headers=headers, timeout=_ASK_LIMIT_S)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        _fail(f"cannot ask {place}: {error}", 1)
    if reply.status_code != 200:
        _fail(f"{place} answered {reply.status_code}: {_message(reply.content)}", 1)
    try:
        return Explanation.model_validate_json(reply.content)
    except ValidationError:
        _fail(f"{place} answered with something else than a plan; is it a gateway?", 1)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode("utf-8", "replace")


def _replayed(file: str, config: Path | None) -> Report:
    from gateway.catalog import Catalog  # noqa: PLC0415 - see above
    from gateway.config import load  # noqa: PLC0415 - see above
    from gateway.fleet import fleet_of  # noqa: PLC0415 - see above
    from gateway.replay import Settings, replay  # noqa: PLC0415 - see above

    settings = None
    if config is not None:
        parsed = load(config, os.environ)
        settings = Settings(Catalog(parsed, 0), fleet_of(parsed))
    return replay(_lines(file), settings)


def _lines(file: str) -> Iterator[bytes]:
    try:
        if file == "-":
            yield from sys.stdin.buffer
        else:
            with Path(file).open("rb") as lines:
                yield from lines
    except OSError as error:
        _fail(f"cannot read {file}: {error.strerror}")


def _show_plan(plan: Explanation, output: ReportFormat) -> None:
    if output is ReportFormat.JSON:
        typer.echo(plan.model_dump_json(indent=2))
        return
    for each in (plan, *plan.fallbacks):
        role = "" if each is plan else ", to fall back on"
        sizes = f"about {each.prompt_tokens} prompt tokens, {each.output_tokens} of output expected"
        typer.echo(f"model {each.model}{role}, tier {each.tier}: {sizes}")
        if each.held_to:
            typer.echo(f"held to: {each.held_to}")
        if each.candidates:
            rows = [
                {
                    "place": place,
                    "endpoint": one.endpoint,
                    "ttft_s": _short(one.ttft_s),
                    "ms_per_token": _short(one.ms_per_token),
                    "imposed_s": _short(one.imposed_s),
                    "cached_tokens": one.cached_tokens,
                    "cost_usd": usd(one.cost_nano_usd),
                    "score_usd": usd(round(_short(one.score_nano_usd))),
                    "on_time": "yes" if one.on_time else "no",
                }
                for place, one in enumerate(each.candidates, start=1)
            ]
            show(rows, _CANDIDATES, Format.TABLE)
            if each.last_resort:
                typer.echo(
                    "as a last resort: all are out, and a few calls at a time try whether they are back"
                )
        else:
            typer.echo("nobody can serve it")
        if each.rejected:
            show([one.model_dump() for one in each.rejected], _REJECTED, Format.TABLE)
        if each.passed_over:
            typer.echo(f"{len(each.passed_over)} more could serve it and were not looked at")


def _show_report(report: Report, output: ReportFormat) -> None:
    import msgspec  # noqa: PLC0415 - see above

    if output is ReportFormat.JSON:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    typer.echo(f"{report.decisions} decisions, {report.same} of them with the very same ranking again")
    if report.different_calls:
        typer.echo(f"another ranking than in the log: {', '.join(report.different_calls)}")
    if report.unreadable:
        typer.echo(f"{report.unreadable} lines could not be read")
    if report.without_model:
        typer.echo(f"{report.without_model} were about models that the configuration does not have")
    sides: dict[str, Mapping[str, Any]] = {"before": _figures(report.before)}
    if report.after is not None:
        typer.echo(f"{report.changed} would have gone to another endpoint first")
        sides["after"] = _figures(report.after)
    figures = [
        {"expected": name, **{side: values[name] for side, values in sides.items()}}
        for name in sides["before"]
    ]
    show(figures, ("expected", *sides), Format.TABLE)
    if report.steps:
        steps = [
            {**msgspec.to_builtins(each), "expected_usd": usd(each.expected_nano_usd)}
            for each in report.steps
        ]
        show(steps, ("kind", "cause", "outcome", "steps", "expected_usd"), Format.TABLE)
    if report.wasted:
        wasted = [
            {"wasted": each.cause, "calls": each.calls, "usd": usd(each.nano_usd)} for each in report.wasted
        ]
        show(wasted, ("wasted", "calls", "usd"), Format.TABLE)
    if report.after is not None:
        shares = msgspec.to_builtins(report.shares)
        show(shares, ("model", "endpoint", "before", "after"), Format.TABLE)


def _figures(side: Expected) -> dict[str, str]:
    return {
        "plans": str(side.plans),
        "served by nobody": str(side.unserved),
        "late for their tier": str(side.late),
        "cost, USD": usd(side.cost_nano_usd),
        "first token, mean s": str(_short(side.ttft_mean_s)),
        "first token, p50 s": str(_short(side.ttft_p50_s)),
        "first token, p99 s": str(_short(side.ttft_p99_s)),
        "whole call, mean s": str(_short(side.call_mean_s)),
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
