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
