"""The pace of streams, and calls by OpenTelemetry's names."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from usage_rows import a_row

from gateway.gen_ai import generation
from gateway.telemetry import Telemetry
from gateway.telemetry_models import GenAiMetrics


def samples(telemetry: Telemetry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(telemetry.page().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_pace_of_a_whole_stream_is_its_time_after_the_first_token_by_the_tokens_that_came_in_it():
    telemetry = Telemetry()
    telemetry.ended(a_row("whole", ttft_ms=100, duration_ms=1100, completion_tokens=51))
    telemetry.ended(a_row("cut short", ttft_ms=100, duration_ms=9000, outcome="client_left"))
    telemetry.ended(a_row("one token", ttft_ms=100, duration_ms=120, completion_tokens=1))
    telemetry.ended(a_row("in one piece", ttft_ms=None, duration_ms=120))
    found, model = samples(telemetry), frozenset({("model", "llama")})
    assert found["tidegate_time_per_output_token_seconds_count", model] == 1
    assert found["tidegate_time_per_output_token_seconds_sum", model] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("semconv", "label"), [("v1.36", "gen_ai_system"), ("latest", "gen_ai_provider_name")]
)
def test_calls_are_shown_by_the_names_of_the_generation_chosen(semconv: str, label: str):
    telemetry = Telemetry(GenAiMetrics(semconv))
    telemetry.ended(a_row("c", prompt_tokens=10, completion_tokens=20))
    telemetry.ended(a_row("d", api="embeddings", ttft_ms=None, outcome="overloaded", completion_tokens=0))
    found = samples(telemetry)

    def labels(api: str, **more: str) -> frozenset[tuple[str, str]]:
        names = {"gen_ai_request_model": "llama", "gen_ai_response_model": "llama"}
        return frozenset({"gen_ai_operation_name": api, label: "tidegate", **names, **more}.items())

    assert found["gen_ai_client_token_usage_sum", labels("chat", gen_ai_token_type="input")] == 10
    assert found["gen_ai_client_token_usage_sum", labels("chat", gen_ai_token_type="output")] == 20
    assert found["gen_ai_server_request_duration_seconds_count", labels("chat", error_type="")] == 1
    failed = labels("embeddings", error_type="overloaded")
    assert found["gen_ai_server_request_duration_seconds_count", failed] == 1
    assert found["gen_ai_server_time_to_first_token_seconds_count", labels("chat")] == 1
    assert found["gen_ai_server_time_per_output_token_seconds_count", labels("chat")] == 1


def test_without_being_asked_for_they_are_not_shown():
    telemetry = Telemetry()
    telemetry.ended(a_row("c"))
    assert b"gen_ai" not in telemetry.page()


@pytest.mark.parametrize(
    ("chosen", "environ", "expected"),
    [
        (None, {}, "v1.36"),
        (None, {"OTEL_SEMCONV_STABILITY_OPT_IN": "http, gen_ai_latest_experimental"}, "latest"),
        ("v1.36", {"OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental"}, "v1.36"),
        ("latest", {}, "latest"),
    ],
)
def test_the_file_chooses_the_generation_else_the_environment(chosen, environ, expected):
    assert generation(chosen, environ) == expected
