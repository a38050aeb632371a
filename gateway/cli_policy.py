"""A policy as options of a command: of a tenant, a project or a key."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer

from gateway.config_file import ConfigError, Problem


class PolicyOptions(NamedTuple):
    """A policy, field by field; lists are separated by commas."""

    models: Annotated[str | None, typer.Option(help="Only these models, separated by commas.")] = None
    tiers: Annotated[str | None, typer.Option(help="Only these tiers.")] = None
    least_trust: Annotated[
        str | None, typer.Option(help="Only endpoints trusted so far: provider, verified or community.")
    ] = None
    regions: Annotated[str | None, typer.Option(help="Only endpoints in these regions.")] = None
    max_price_input: Annotated[
        str | None, typer.Option(help="Most USD per million prompt tokens, of the endpoint's cost.")
    ] = None
    max_price_output: Annotated[str | None, typer.Option(help="Most USD per million completion tokens.")] = (
        None
    )
    apis: Annotated[
        str | None, typer.Option(help="Only these APIs: chat, completions, embeddings, models.")
    ] = None
    networks: Annotated[str | None, typer.Option(help="Only calls from these, such as 10.0.0.0/8.")] = None
    requests_per_min: Annotated[str | None, typer.Option(help="Most calls begun in a minute.")] = None
    tokens_per_min: Annotated[str | None, typer.Option(help="Most tokens in a minute.")] = None
    concurrency: Annotated[str | None, typer.Option(help="Most calls under way at once.")] = None
    budgets_day: Annotated[
        str | None, typer.Option("--budget-day", help="Most USD charged in a day of UTC.")
    ] = None
    budgets_week: Annotated[
        str | None, typer.Option("--budget-week", help="Most USD charged in a week, from Monday on.")
    ] = None
    budgets_month: Annotated[
        str | None, typer.Option("--budget-month", help="Most USD charged in a month.")
    ] = None
    budgets_total: Annotated[str | None, typer.Option("--budget-total", help="Most USD charged in all.")] = (
        None
    )

    def given(self) -> dict[str, Any] | None:
        """The policy as it is sent, or None where nothing is said. Raises ConfigError, each problem at its option."""
        section: dict[str, Any] = {}
        for option, text in self._asdict().items():
            group, _, field = option.rpartition("_")
            if text is None:
                continue
            if group in ("max_price", "budgets"):
                section.setdefault(group, {})[field] = text
            else:
                is_list = option in ("models", "tiers", "regions", "apis", "networks")
                section[option] = listed(text) if is_list else text
        if not section:
            return None
        _expect_policy(section)
        return section


def _expect_policy(section: dict[str, Any]) -> None:
    from pydantic import ValidationError  # noqa: PLC0415 - takes time to import

    from gateway.config_policy import PolicySection  # noqa: PLC0415 - as above

    try:
        PolicySection.model_validate(section)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise ConfigError(tuple(Problem(_option(each["loc"]), each["msg"]) for each in details)) from None


def _option(location: tuple[str | int, ...]) -> str:
    words = [part for part in location if isinstance(part, str)]
    return "--" + "-".join(words).replace("_", "-").replace("budgets-", "budget-")


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
