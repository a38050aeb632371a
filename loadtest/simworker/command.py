"""`python -m loadtest worker`: one simulated worker as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
import uvloop

from loadtest.simworker.faults import read_faults
from loadtest.simworker.spec import WorkerSpec
from loadtest.worker import SimWorker


def worker(  # noqa: PLR0913 - each argument is an option of the command line
    *,
    model: Annotated[str, typer.Option(help="The model's name.")] = "sim",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = 0,
    prefill_tokens_per_s: Annotated[
        float | None,
        typer.Option(help="0: no time. Default 20000, or no time where decoding takes none.", min=0),
    ] = None,
    decode_s_per_token: Annotated[float, typer.Option(help="0: as fast as it can.", min=0)] = 0.01,
    batch_slowdown: Annotated[
        float, typer.Option(help="Part by which a step grows per further sequence.", min=0)
    ] = 0.02,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run at once.", min=1)] = 16,
    max_num_queued_reqs: Annotated[
        int | None, typer.Option(help="More waiting than this: 503.", min=0)
    ] = None,
    scheduling_policy: Annotated[
        Literal["fcfs", "priority"], typer.Option(help="Who waiting goes first.")
    ] = "fcfs",
    kv_blocks: Annotated[int, typer.Option(help="Size of the prefix cache.", min=1)] = 4096,
    block_size: Annotated[int, typer.Option(help="Tokens per block of the prefix cache.", min=1)] = 16,
    max_model_len: Annotated[int, typer.Option(help="Most tokens of prompt and answer.", min=1)] = 32_768,
    shutdown_timeout: Annotated[
        float, typer.Option(help="Seconds SIGTERM leaves to running requests.", min=0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed is another model.")] = 0,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Answer /v1/embeddings.")] = False,
    account: Annotated[
        str, typer.Option(help="Folder to note in what was worked for each request, in a file by the port.")
    ] = "",
    faults: Annotated[str, typer.Option(help="Faults as JSON, or @FILE.")] = "[]",
    exit_with_stdin: Annotated[bool, typer.Option("--exit-with-stdin", help="Exit when stdin ends.")] = False,
) -> None:
    """Serve a simulated vLLM worker; prints `ready URL` when it listens."""
    faults_json = Path(faults[1:]).read_bytes() if faults.startswith("@") else faults.encode()
    try:
        spec = WorkerSpec(
            model=model,
            host=host,
            port=port,
            prefill_tokens_per_s=prefill_tokens_per_s,
            decode_s_per_token=decode_s_per_token,
            batch_slowdown=batch_slowdown,
            max_num_seqs=max_num_seqs,
            max_num_queued_reqs=max_num_queued_reqs,
            scheduling_policy=scheduling_policy,
            kv_blocks=kv_blocks,
            block_size=block_size,
            max_model_len=max_model_len,
            shutdown_timeout=shutdown_timeout,
            seed=seed,
            embeddings=embeddings,
            account=account,
            faults=read_faults(faults_json),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        uvloop.run(serve(spec, exit_with_stdin=exit_with_stdin))
    except OSError as error:
        print(f"cannot listen on {host}:{port}: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


async def serve(spec: WorkerSpec, *, exit_with_stdin: bool = False) -> None:
    """Serve until SIGTERM or SIGINT has run its course, or at once to the end of stdin."""
    loop = asyncio.get_running_loop()
    async with SimWorker(spec) as sim:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, sim.terminate)
        if exit_with_stdin:
            loop.add_reader(sys.stdin.fileno(), _exit_at_end_of, sys.stdin.fileno())
        print(f"ready {sim.url}", flush=True)
        await sim.gone.wait()


def _exit_at_end_of(fileno: int) -> None:
    """Whoever started this process holds the other end; when it is killed, nothing may be left behind."""
    if not os.read(fileno, 4096):
        os._exit(0)
