"""What to expect of an endpoint from the card that it is said to run on, before it has been seen.

A guess from data sheets, for a model of eight billion parameters: it only has to be near enough to begin with.
"""

from __future__ import annotations

import re

from msgspec import Struct


class Gpu(Struct, frozen=True):
    """A card by its two figures that matter here, from the vendor's data sheet."""

    tflops: float
    """Dense bf16 (fp16 where the card has no bf16), 1e12 operations per second: bounds prefill."""
    gb_per_s: float
    """Memory bandwidth, 1e9 bytes per second: bounds decode."""
    gb: float
    """Memory, 1e9 bytes; of a card sold with more than one size, the smallest: bounds the prefix cache."""


GPUS: dict[str, Gpu] = {
    "b200": Gpu(2250, 8000, 180),
    "h200": Gpu(989, 4800, 141),
    "h100": Gpu(989, 3350, 80),
    "mi300x": Gpu(1307, 5300, 192),
    "a100": Gpu(312, 2039, 40),
    "l40s": Gpu(362, 864, 48),
    "a6000": Gpu(155, 768, 48),
    "a40": Gpu(150, 696, 48),
    "a10": Gpu(125, 600, 24),
    "a10g": Gpu(70, 600, 24),
    "l4": Gpu(121, 300, 24),
    "v100": Gpu(125, 900, 16),
    "t4": Gpu(65, 320, 16),
    "5090": Gpu(210, 1792, 32),
    "4090": Gpu(165, 1008, 24),
    "4080": Gpu(97, 717, 16),
    "3090": Gpu(71, 936, 24),
}
"""Rounded from the data sheets of NVIDIA (for GeForce the architecture white papers, FP32 accumulation) and AMD."""

UNKNOWN_GPU = GPUS["4090"]
"""For a class that is not declared or not listed, and for hosted endpoints: in the middle of the table."""

MODEL_PARAMETERS = 8e9
"""The guess is made for a model of this size at two bytes a parameter."""

USED_TFLOPS = 0.5
USED_GB_PER_S = 0.8
"""Shares of the two bounds assumed to be reached in practice. A guess, which PRIOR_S keeps from mattering for long."""

KV_BYTES_PER_TOKEN = 131_072
"""Of Llama-3.1-8B's KV cache: two vectors of 1,024 two-byte numbers for each of 32 layers."""

KV_BYTES_PER_SEQUENCE = KV_BYTES_PER_TOKEN * 2_000
"""Bytes that each running sequence adds to a decode step: the KV cache of 2,000 tokens."""

USED_MEMORY = 0.9
"""Share of the card's memory that vLLM takes (--gpu-memory-utilization)."""

LEAST_KV_TOKENS = 16_384
"""Guessed where a card's memory would not even hold the weights: then it serves a smaller or a quantized model."""


class Prior(Struct, frozen=True):
    """What to expect of an endpoint before it has been seen."""

    work_per_s: float
    """Token-equivalents of prefill per second."""
    step_s: float
    """Seconds per decode step, whatever the batch."""
    sequence_s: float
    """Seconds that each sequence of the batch adds to a step."""


def card_for(gpu: str | None) -> Gpu:
    """The card of that name; any usual spelling does ("rtx-4090", "NVIDIA A100-SXM4-80GB")."""
    words = (word.removeprefix("rtx") for word in re.findall(r"[a-z0-9]+", (gpu or "").lower()))
    return next((GPUS[word] for word in words if word in GPUS), UNKNOWN_GPU)


def kv_tokens_for(gpu: str | None) -> int:
    """The guess of how many tokens its prefix cache has room for."""
    free_bytes = card_for(gpu).gb * 1e9 * USED_MEMORY - 2 * MODEL_PARAMETERS
    return max(LEAST_KV_TOKENS, int(free_bytes / KV_BYTES_PER_TOKEN))


def prior_for(gpu: str | None) -> Prior:
    """The guess for a declared GPU."""
    card = card_for(gpu)
    bytes_per_s = card.gb_per_s * 1e9 * USED_GB_PER_S
    return Prior(
        work_per_s=card.tflops * 1e12 * USED_TFLOPS / (2 * MODEL_PARAMETERS),
        step_s=2 * MODEL_PARAMETERS / bytes_per_s,
        sequence_s=KV_BYTES_PER_SEQUENCE / bytes_per_s,
    )
