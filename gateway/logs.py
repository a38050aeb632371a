"""The log: one line for each thing that happened, as text or as JSON, without what is secret.

The modules log as Python's do. What their lines become is settled here, once: structlog renders them, and whatever looks
like a key is taken out of every line, whoever has written it. Prompts are in none, except for tenants that have been chosen
for it, whose prompts are logged on a line of their own, redacted.

Modules that are not ours never get below WARNING: some would log whole requests.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from gateway.redaction import Redaction, without_keys

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

    from gateway.config_telemetry import LogSection
    from gateway.ledger import UsageRow
    from gateway.openai import Request

OURS = ("gateway", "backends", "routing")
PROMPT_CHARS = 4096
"""Of a prompt, that are logged at most."""

_PROMPTS: dict[str, str] = {"chat": "messages", "completions": "prompt", "embeddings": "input"}
"""Where the text of a prompt stands in a body, by API."""

_calls = logging.getLogger("gateway.calls")


def begin_log(section: LogSection, process: int | None = None) -> None:
    """From now on all that is logged goes to stderr like this; `process` is the number of one of several."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json(process) if section.format == "json" else _text(process))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(section.level.upper())


def log_call(row: UsageRow) -> None:
    """A call has ended."""
    _calls.info(
        "call",
        extra={
            "call_id": row.call_id,
            "request_id": row.request_id,
            "tenant": row.tenant,
            "key_id": row.key_id,
            "model": row.model,
            "endpoint": row.endpoint,
            "tier": row.tier,
            "api": row.api,
            "stream": row.stream,
            "status": row.status,
            "outcome": row.outcome,
            "attempts": row.attempts,
            "prompt_tokens": row.prompt_tokens,
            "cached_tokens": row.cached_tokens,
            "completion_tokens": row.completion_tokens,
            "ttft_ms": row.ttft_ms,
            "duration_ms": row.duration_ms,
            "charge_nano_usd": row.charge_nano_usd,
        },
    )


class Prompts:
    """Logs the prompts of the tenants chosen for it."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction

    def log(self, request: Request, tenant: str, call_id: str) -> None:
        """Log the beginning of a call's prompt."""
        raw = request.fields.get(_PROMPTS[request.api])
        text = "" if raw is None else "\n".join(_texts(msgspec.json.decode(raw)))
        if len(text) > PROMPT_CHARS:  # to a whole word: half a key would not be known for one
            text = text[:PROMPT_CHARS].rpartition(" ")[0]
        extra = {"call_id": call_id, "tenant": tenant, "prompt": self._redaction.of(text)}
        _calls.info("prompt", extra=extra)


def _texts(value: Any, depth: int = 3) -> list[str]:
    """All that is text in messages or a prompt; media are no text, nor is what is deeper than any API has it."""
    match value:
        case str():
            return [value]
        case list() if depth:
            return [text for each in value for text in _texts(each, depth - 1)]
        case {"type": "text" | "input_text", "text": str(text)}:
            return [text]
        case {"role": str(role), **rest} if depth:
            return [f"{role}: {text}" for text in _texts(rest.get("content"), depth - 1)]
    return []


def _json(process: int | None) -> logging.Formatter:
    def numbered(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        if process is not None:
            event["process"] = process
        return event

    def redacted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {
            name: without_keys(value) if isinstance(value, str) else value for name, value in event.items()
        }

    return _formatter(
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        numbered,
        structlog.processors.format_exc_info,
        redacted,
        structlog.processors.JSONRenderer(sort_keys=False, ensure_ascii=False, default=str),
    )


def _text(process: int | None) -> logging.Formatter:
    number = "" if process is None else f" [process {process}]"

    def rendered(_: WrappedLogger, __: str, event: EventDict) -> str:
        head = f"{event.pop('timestamp')} {event.pop('level').upper()} {event.pop('logger')}: {event.pop('event')}{number}"
        trace = event.pop("exception", None)
        fields = "".join(f" {name}={value}" for name, value in event.items())
        return without_keys(f"{head}{fields}" + (f"\n{trace}" if trace else ""))

    return _formatter(
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.format_exc_info,
        rendered,
    )


def _formatter(*processors: Processor) -> logging.Formatter:
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return structlog.stdlib.ProcessorFormatter(processors=[*processors[:-1], meta, processors[-1]])
