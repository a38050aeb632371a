"""The command line, `tidegate`.

What a user can cause ends in one line per problem on stderr and an exit code: 2 for a configuration or an argument
that is wrong, 1 for what could not be done. Whatever takes time to import is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import sys
from decimal import Decimal
from importlib.metadata import version as installed_version
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gateway import cli_access, cli_events, cli_keys, cli_nodes, cli_tenants
from gateway.cli_billing import balance, correct, credit, pay, payment, prices, refund
from gateway.cli_doctor import doctor
from gateway.cli_explain import explain
from gateway.cli_invoices import export, invoice, invoices, payout
from gateway.cli_options import DEFAULT_CONFIG, ReportFormatOption, unfolded
from gateway.cli_reconcile import reconcile
from gateway.cli_top import top
from gateway.cli_usage import usage
from gateway.config_file import ConfigError
from gateway.output import ReportFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config import Config
    from gateway.config_endpoint import EndpointSection, PriceTable
    from gateway.config_model import AliasSection, ModelSection

app = typer.Typer(
    name="tidegate",
    help="An OpenAI-compatible gateway over hosted providers and a pool of vLLM workers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print local variables, and those hold secrets
)


def _show_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it with the flag's value
    if asked:
        typer.echo(f"tidegate {installed_version('tidegate')}")
        raise typer.Exit


@app.callback()
def tidegate(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The configuration file.")] = DEFAULT_CONFIG,
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of the file's.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port to listen on, instead of the file's.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Processes, instead of the file's; auto: one a core.")
    ] = None,
) -> None:
    """Run the gateway."""
    from gateway.reload import ConfigFile  # noqa: PLC0415 - see the module's docstring

    overrides = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    file = ConfigFile.at(config, os.environ, overrides, {} if workers is None else {"workers": workers})
    parsed = file.load()
    from gateway.app import run  # noqa: PLC0415 - as above
    from gateway.database import StoreError  # noqa: PLC0415 - as above
    from gateway.listeners import CannotListen  # noqa: PLC0415 - as above

    try:
        code = run(parsed, file)
    except (CannotListen, StoreError) as error:
        _fail(str(error), 1)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"cannot use {error.filename}: {error.strerror}", 1)  # the journal's folder, the decision log
    raise typer.Exit(code)


@app.command()
@unfolded
def check(
    config: Annotated[Path, typer.Argument(help="The configuration file.")] = DEFAULT_CONFIG,
    output: ReportFormatOption = ReportFormat.TABLE,
) -> None:
    """Validate a configuration file; every error with its path in the file, exit 2 if there is any."""
    from gateway.config import load  # noqa: PLC0415 - see the module's docstring

    try:
        parsed = load(config, os.environ)
    except ConfigError as error:
        if output is ReportFormat.TABLE:
            raise  # main prints it
        typer.echo(json.dumps({"valid": False, "errors": [problem._asdict() for problem in error.problems]}))
        raise typer.Exit(2) from None
    if output is ReportFormat.JSON:
        typer.echo(json.dumps({"valid": True, "config": parsed.shown()}))
        return
    for line in _summary(parsed):
        typer.echo(line)
    typer.echo(f"{config} is valid")


@app.command()
def demo(
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port of the gateway; 0: any free one.")
    ] = 8000,
    nodes: Annotated[int, typer.Option(min=1, max=16, help="How many simulated workers.")] = 3,
) -> None:
    """Gateway, simulated vLLM workers and SQLite in a temporary folder; Ctrl-C stops all of it."""
    from gateway.demo import DemoError, run  # noqa: PLC0415 - see the module's docstring
    from gateway.listeners import CannotListen  # noqa: PLC0415 - as above

    try:
        code = run(port, nodes)
    except (CannotListen, DemoError) as error:
        _fail(str(error), 1)
    raise typer.Exit(code)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    },
    add_help_option=False,
)
def loadtest(context: typer.Context) -> None:
    """Load generator, simulated worker and benches (the same as `python -m loadtest`)."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "loadtest", *context.args])  # noqa: S606 - our own module, no shell


def main() -> None:
    try:
        app()
    except ConfigError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:  # Ctrl-C before there was anything to stop in order
        sys.exit(130)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    sys.exit(code)


def _summary(config: Config) -> Iterator[str]:
    yield f"listen    {config.listen.host}:{config.listen.port}, auth {config.auth.mode}"
    if config.admin.listen is not None:
        yield f"admin     {config.admin.listen.host}:{config.admin.listen.port}"
    yield f"database  {config.database_shown()}"
    yield f"journal   {config.journal.folder}"
    if config.decision_log is not None:
        yield f"decisions {config.decision_log.file}, a share of {config.decision_log.sample:g}"
    for name, model in config.models.items():
        yield f"model     {name}: {_model_line(model)}"
        for endpoint in model.endpoints:
            yield f"  {endpoint.kind:7}  {_endpoint_line(endpoint)}"
        for discover in model.discover:
            yield f"  {discover.described}"
    for name, alias in config.aliases.items():
        yield f"alias     {name}: {_alias_line(alias)}"
    for name, webhook in config.events.items():
        yield f"events    {name}: {webhook.shape} to {webhook.url}"
    for name, tenant in config.tenants.items():
        yield f"tenant    {name}: {tenant.policy.policy().described() or 'unbounded'}"
    for name in ("priority", "default", "flex"):
        tier = getattr(config.tiers, name)
        aim, worth = f"{tier.max_ttft_ms} ms to first token", f"{tier.waiting_usd_per_hour} USD"
        yield f"tier      {name}: aims at {aim}, an hour of waiting is worth {worth}"


def _model_line(model: ModelSection) -> str:
    aliases = f" (also {', '.join(model.aliases)})" if model.aliases else ""
    return f"{_price_text(model.price)}{aliases}"


def _alias_line(alias: AliasSection) -> str:
    parts = [
        alias.default,
        alias.priority and f"priority {alias.priority}",
        alias.flex and f"flex {alias.flex}",
        alias.fallbacks and f"then {', '.join(alias.fallbacks)}",
    ]
    return "; ".join(part for part in parts if part)


def _endpoint_line(endpoint: EndpointSection) -> str:
    parts = [
        endpoint.resolved_name,
        endpoint.url,
        f"trust {endpoint.resolved_trust}",
        endpoint.region and f"region {endpoint.region}",
        endpoint.gpu and f"gpu {endpoint.gpu}",
        endpoint.api_key and f"api_key {endpoint.api_key}",
        endpoint.api_keys and f"{len(endpoint.api_keys)} api_keys",
        f"cost {_cost_text(endpoint)}" if endpoint.cost or endpoint.known else "",
    ]
    return ", ".join(part for part in parts if part)


def _cost_text(endpoint: EndpointSection) -> str:
    if endpoint.cost is not None:
        return _price_text(endpoint.cost)
    price, cached = endpoint.price, endpoint.price.cached_input_pico_usd
    per_million = [
        f"input {_usd_per_million(price.input_pico_usd)}",
        f"output {_usd_per_million(price.output_pico_usd)}",
        *([] if cached is None else [f"cached {_usd_per_million(cached)}"]),
    ]
    return f"{', '.join(per_million)} USD per million tokens, by litellm's table"


def _usd_per_million(pico_usd_per_token: int) -> str:
    return f"{Decimal(pico_usd_per_token) / 1_000_000:f}"


def _price_text(price: PriceTable) -> str:
    cached = "" if price.cached_input is None else f", cached {price.cached_input}"
    reasoning = "" if price.reasoning is None else f", reasoning {price.reasoning}"
    return f"input {price.input}, output {price.output}{cached}{reasoning} USD per million tokens"


# Help lists them in this order: those that serve come first.
app.command()(top)
app.command()(doctor)
app.command()(explain)
app.add_typer(cli_tenants.tenants, name="tenants")
app.add_typer(cli_tenants.projects, name="projects")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_access.admin_keys, name="admin-keys")
app.command()(cli_access.audit)
app.add_typer(cli_nodes.app, name="nodes")
app.add_typer(export, name="export")
app.command()(usage)
for command in (credit, refund, payment, correct, pay, balance, prices, invoice, invoices, payout):
    app.command()(command)
app.command()(reconcile)
app.add_typer(cli_events.app, name="events")
