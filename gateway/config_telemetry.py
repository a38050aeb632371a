"""The sections of the configuration that say what is told of calls, and to whom: traces, metrics' names, the log."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from gateway.config_section import OpenAIUrl, Secret, Section, no_boolean


def _header(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise ValueError("should be the name of a header")
    return name


class TelemetrySection(Section):
    otlp: OpenAIUrl | None = Field(
        None,
        description="Collector that traces are sent to by OTLP over HTTP, such as `http://127.0.0.1:4318`; without it, what "
        "`OTEL_EXPORTER_OTLP_ENDPOINT` says, else there are none.",
    )
    headers: dict[Annotated[str, AfterValidator(_header)], Secret] = Field(
        {}, description="Headers that the collector wants, such as `authorization`."
    )
    sample: Annotated[float, BeforeValidator(no_boolean)] = Field(
        0.01, ge=0, le=1, description="Which share of the calls is traced whose client does not say."
    )
    follow_clients: bool = Field(
        default=True,
        description="Whether a client that sends a trace context (`traceparent`) says if its call is traced.",
    )
    semconv: Literal["v1.36", "latest"] | None = Field(
        None,
        description="Generation of OpenTelemetry's GenAI names in traces and metrics; without it, `v1.36`, or `latest` where "
        "`OTEL_SEMCONV_STABILITY_OPT_IN` has `gen_ai_latest_experimental`.",
    )
    gen_ai_metrics: bool = Field(
        default=False, description="Whether `/metrics` has OpenTelemetry's `gen_ai_*` beside `tidegate_*`."
    )


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error:
        raise ValueError("should be a regular expression") from None
    return text


class LogSection(Section):
    format: Literal["text", "json"] = Field(
        "text", description="How lines are written to stderr: `text`, or `json`, an object each."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged."
    )
    calls: bool = Field(default=False, description="Whether every call is logged when it has ended.")
    redact: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(
        (),
        description="Regular expressions of what is taken out of prompts that are logged (`tenants.NAME.log_prompts`), beside keys, "
        "mail addresses, and numbers of telephones, cards and accounts.",
    )
