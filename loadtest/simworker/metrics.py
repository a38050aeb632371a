"""The part of vLLM's /metrics that a router reads, with its names, labels and order."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.simworker.engine import Engine

Samples = list[tuple[str, float]]


def metrics_text(engine: Engine) -> str:
    spec, cache = engine.spec, engine.cache
    model = f'model_name="{_escaped(spec.model)}"'
    base = f'engine="0",{model}'
    waiting = len(engine.waiting)
    finished: Samples = [
        (f'engine="0",finished_reason="{reason}",{model}', count) for reason, count in engine.finished.items()
    ]
    rejected: Samples = [
        (f'{model},reason="max_num_queued_reqs"', engine.rejected),
        (f'{model},reason="max_num_queued_tokens"', 0),
    ]
    reasons: Samples = [(f'{base},reason="capacity"', waiting), (f'{base},reason="deferred"', 0)]
    families: list[tuple[str, str, str, Samples]] = [
        ("num_requests_running", "gauge", "Requests in execution batches.", [(base, len(engine.running))]),
        ("num_requests_waiting", "gauge", "Requests waiting to be processed.", [(base, waiting)]),
        ("num_requests_waiting_by_reason", "gauge", "Waiting requests by reason.", reasons),
        ("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent.", [(base, engine.kv_usage)]),
        ("prefix_cache_queries_total", "counter", "Tokens queried.", [(base, cache.queried_tokens)]),
        ("prefix_cache_queries_created", "gauge", "Tokens queried.", [(base, engine.started_s)]),
        ("prefix_cache_hits_total", "counter", "Tokens found.", [(base, cache.hit_tokens)]),
        ("num_preemptions_total", "counter", "Preemptions.", [(base, 0)]),
        ("prompt_tokens_total", "counter", "Prefill tokens processed.", [(base, engine.prompt_tokens)]),
        ("prompt_tokens_cached_total", "counter", "Cached prompt tokens.", [(base, engine.cached_tokens)]),
        ("generation_tokens_total", "counter", "Tokens generated.", [(base, engine.generated_tokens)]),
        ("request_success_total", "counter", "Successfully processed requests.", finished),
        ("admission_rejections_total", "counter", "Rejections by a queue limit, by reason.", rejected),
        ("cache_config_info", "gauge", "The cache's configuration.", [(_cache_config(engine), 1)]),
    ]
    return "".join(_family(*family) for family in families)


def _family(name: str, kind: str, about: str, samples: Samples) -> str:
    lines = "".join(f"vllm:{name}{{{labels}}} {float(value)}\n" for labels, value in samples)
    return f"# HELP vllm:{name} {about}\n# TYPE vllm:{name} {kind}\n{lines}"


def _cache_config(engine: Engine) -> str:
    spec = engine.spec
    return (
        f'block_size="{spec.block_size}",cache_dtype="auto",enable_prefix_caching="True",engine="0",'
        f'kv_cache_size_tokens="{spec.block_size * spec.kv_blocks}",num_gpu_blocks="{spec.kv_blocks}",'
        'prefix_caching_hash_algo="sha256"'
    )


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
