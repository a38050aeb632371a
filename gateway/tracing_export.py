"""Spans on their way to a collector: a bounded queue, and a thread that empties it by OTLP over HTTP.

Nothing waits for the collector. Where it does not keep up, or is away, spans are dropped and counted, and the log says so
once, and once more when it is back.

Imported only where traces are switched on, as `gateway.tracing` is.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from gateway.gen_ai import generation
from gateway.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from gateway.config_telemetry import TelemetrySection
    from gateway.telemetry_traces import SpanCounts

log = logging.getLogger(__name__)

WAITING_SPANS = 4096
"""In memory until they are sent: some megabytes."""
BATCH_SPANS = 512
GATHERED_S = 1.0
"""For how long a batch is gathered."""
TIMEOUT_S = 5.0
"""For the collector to take a batch, tries included."""
CLOSING_S = 5.0
"""For what is left when the process ends."""


class SpanQueue(SpanProcessor):
    """Takes the spans that have ended."""

    def __init__(self, exporter: SpanExporter, counts: SpanCounts) -> None:
        self._exporter = exporter
        self._counts = counts
        self._waiting: queue.Queue[ReadableSpan | None] = queue.Queue(WAITING_SPANS)
        self._failing = False

    def on_end(self, span: ReadableSpan) -> None:
        try:
            self._waiting.put_nowait(span)
        except queue.Full:
            self._counts.too_many += 1

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send what comes while the block runs, and what is left when it has ended."""
        thread = threading.Thread(target=self._send, name="spans", daemon=True)
        thread.start()
        try:
            yield
        finally:
            deadline_s = time.monotonic() + CLOSING_S
            try:
                self._waiting.put(None, timeout=CLOSING_S)
                thread.join(max(0.0, deadline_s - time.monotonic()))
            except queue.Full:
                log.warning("the last spans could not be sent")
            self._exporter.shutdown()

    def _send(self) -> None:
        ends = False
        while not ends:
            batch, ends = self._batch()
            if batch:
                self._export(batch)

    def _batch(self) -> tuple[list[ReadableSpan], bool]:
        """The next spans to send together; True where there will be no more."""
        batch: list[ReadableSpan] = []
        until_s = None
        while len(batch) < BATCH_SPANS:
            try:
                left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
                span = self._waiting.get(timeout=left_s)
            except queue.Empty:
                break
            if span is None:
                return batch, True
            batch.append(span)
            until_s = until_s or time.monotonic() + GATHERED_S
        return batch, False

    def _export(self, batch: list[ReadableSpan]) -> None:
        if self._exporter.export(batch) is SpanExportResult.SUCCESS:
            self._counts.sent += len(batch)
            if self._failing:
                log.info("the collector takes spans again")
            self._failing = False
            return
        self._counts.not_taken += len(batch)
        if not self._failing:
            log.warning("the collector takes no spans, they are dropped until it does")
        self._failing = True


@contextmanager
def tracing(section: TelemetrySection, counts: SpanCounts) -> Iterator[Tracing]:
    """Traces of calls, sent to the collector as long as the block runs."""
    # What it says of every try is said once here.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    headers = {name: value.get_secret_value() for name, value in section.headers.items()}
    # What is not given here it takes from the environment, by OpenTelemetry's own names.
    exporter = OTLPSpanExporter(traces_url(section.otlp), headers=headers or None, timeout=TIMEOUT_S)
    spans = SpanQueue(exporter, counts)
    provider = TracerProvider(sampler=ALWAYS_ON, resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(spans)
    tracer = provider.get_tracer("tidegate")
    semconv = generation(section.semconv, os.environ)
    with spans.sending():
        yield Tracing(tracer, semconv, section.sample, follow_clients=section.follow_clients)


def traces_url(otlp: str | None) -> str | None:
    """Where traces go at a collector that is given by its root, or by this URL itself."""
    if otlp is None or otlp.endswith("/v1/traces"):
        return otlp
    return f"{otlp}/v1/traces"


def _resource() -> Resource:
    named = Resource.create()
    ours = {SERVICE_NAME: "tidegate", SERVICE_VERSION: version("tidegate")}
    if not str(named.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        del ours[SERVICE_NAME]
    return named.merge(Resource(ours))
