"""The part of vLLM's /metrics that a router reads, with its names, labels and order."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.simworker.engine import Engine


def metrics_text(engine: Engine) -> str:
    spec, cache = engine.spec, engine.cache
    base = f'engine="0",model_name="{_escaped(spec.model)}"'
    waiting = len(engine.waiting)
    lines: list[str] = []

    def family(name: str, kind: str, about: str, samples: list[tuple[str, float]]) -> None:
        # A counter's family is named without _total by some parsers and with it by vLLM's exposition: as captured.
        lines.append(f"# HELP vllm:{name} {about}")
        lines.append(f"# TYPE vllm:{name} {kind}")
        lines.extend(f"vllm:{name}{{{labels}}} {float(value)}" for labels, value in samples)

    running = "Number of requests in model execution batches."
    family("num_requests_running", "gauge", running, [(base, len(engine.running))])
    family("num_requests_waiting", "gauge", "Number of requests waiting to be processed.", [(base, waiting)])
    family(
        "num_requests_waiting_by_reason",
        "gauge",
        "Number of waiting requests by reason.",
        [(f'{base},reason="capacity"', waiting), (f'{base},reason="deferred"', 0)],
    )
    family(
        "kv_cache_usage_perc",
        "gauge",
        "KV-cache usage. 1 means 100 percent usage.",
        [(base, engine.kv_usage)],
    )
    queries = "Prefix cache queries, in terms of number of queried tokens."
    family("prefix_cache_queries_total", "counter", queries, [(base, cache.queried_tokens)])
    hits = "Prefix cache hits, in terms of number of cached tokens."
    family("prefix_cache_hits_total", "counter", hits, [(base, cache.hit_tokens)])
    family(
        "num_preemptions_total", "counter", "Cumulative number of preemption from the engine.", [(base, 0)]
    )
    family(
        "prompt_tokens_total",
        "counter",
        "Number of prefill tokens processed.",
        [(base, engine.prompt_tokens)],
    )
    cached = "Number of cached prompt tokens (local + external)."
    family("prompt_tokens_cached_total", "counter", cached, [(base, engine.cached_tokens)])
    generated = "Number of generation tokens processed."
    family("generation_tokens_total", "counter", generated, [(base, engine.generated_tokens)])
    family(
        "request_success_total",
        "counter",
        "Count of successfully processed requests.",
        [
            (f'engine="0",finished_reason="{reason}",model_name="{_escaped(spec.model)}"', count)
            for reason, count in engine.finished.items()
        ],
    )
    family(
        "admission_rejections_total",
        "counter",
        "Number of admission attempts rejected by a queue limit, by reason.",
        [
            (f'model_name="{_escaped(spec.model)}",reason="max_num_queued_reqs"', engine.rejected),
            (f'model_name="{_escaped(spec.model)}",reason="max_num_queued_tokens"', 0),
        ],
    )
    cache_config = (
        f'block_size="{spec.block_size}",cache_dtype="auto",enable_prefix_caching="True",engine="0",'
        f'kv_cache_size_tokens="{spec.block_size * spec.kv_blocks}",num_gpu_blocks="{spec.kv_blocks}",'
        'prefix_caching_hash_algo="sha256"'
    )
    family("cache_config_info", "gauge", "Information of the LLMEngine CacheConfig", [(cache_config, 1)])
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
