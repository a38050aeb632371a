"""What a simulated worker is told at its start: the options of `vllm serve` that matter to a gateway, and its speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from loadtest.simworker.faults import Fault

DEFAULT_PREFILL_TOKENS_PER_S = 20_000.0


class WorkerSpec(Struct, frozen=True, kw_only=True):
    """One simulated worker. Each field is an option of the command line, with dashes for underscores."""

    model: str = "sim"
    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port."""
    prefill_tokens_per_s: float | None = None
    """None: 20,000, or no time at all where decoding takes none either; 0: no time at all."""
    decode_s_per_token: float = 0.01
    """Seconds per token of a sequence that runs alone; 0: as fast as the machine can."""
    batch_slowdown: float = 0.02
    """By what part of itself a decode step grows with each further sequence in the batch."""
    max_num_seqs: int = 16
    max_num_queued_reqs: int | None = None
    """With more than this waiting, further requests get a 503; None: no limit."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """priority: the lower number first."""
    kv_blocks: int = 4096
    block_size: int = 16
    max_model_len: int = 32_768
    shutdown_timeout: float = 0.0
    """How long SIGTERM lets running requests finish; 0: it leaves them hanging in silence, as vLLM does."""
    seed: int = 0
    """Workers of one seed give the same tokens for the same prompt, workers of another seed give others."""
    embeddings: bool = False
    """Whether /v1/embeddings is answered; a model that generates has no such route in vLLM."""
    account: str = ""
    """Folder where it notes what it has worked for each request, in a file by its port; "": nowhere."""
    faults: tuple[Fault, ...] = ()

    @property
    def prefill_s_per_token(self) -> float:
        if self.prefill_tokens_per_s is None:
            return 0.0 if self.decode_s_per_token == 0 else 1 / DEFAULT_PREFILL_TOKENS_PER_S
        return 0.0 if self.prefill_tokens_per_s == 0 else 1 / self.prefill_tokens_per_s
