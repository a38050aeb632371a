"""From a request body to sequences that run: what is asked, whether it can be served, and in which words it is answered."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from loadtest.simworker.bodies import ChatBody, CompletionBody, GenerateBody, NamedTool, ToolSpec
from loadtest.simworker.chat_format import CalledTool, ChatFormat, Heading
from loadtest.simworker.completion_format import CompletionFormat
from loadtest.simworker.engine import Engine, Sampling, Sequence
from loadtest.simworker.errors import Refused, bad_value, busy, prompt_too_long
from loadtest.simworker.prompts import prompt_of, read_prompts, text_of
from loadtest.simworker.reply import Counted, Format, StreamReply, StreamUsage, WholeReply
from loadtest.simworker.schema import instance
from loadtest.simworker.source import FreeText, Script, Source, checksum
from loadtest.simworker.stops import Stops

if TYPE_CHECKING:
    from loadtest.simworker.account import Account
    from loadtest.simworker.connection import Exchange, Request
    from loadtest.simworker.spec import WorkerSpec
    from loadtest.simworker.tape import Stats
    from loadtest.simworker.tokenizer import Tokenizer

_ANY_OBJECT = {
    "properties": {
        "answer": {"type": "string"},
        "height_m": {"type": "number"},
        "rising": {"type": "boolean"},
    }
}


MOST_LOGPROBS = 20
"""vLLM's `--max-logprobs`."""
MOST_CHOICES = 16_384
"""vLLM's VLLM_MAX_N_SEQUENCES."""


class Asked(Struct):
    """A request understood: prompts, how much of an answer, and the words for it."""

    prompts: list[list[int]]
    wording: Format
    max_tokens: int | None
    script: Any = None
    """The JSON schema that the answer must be an instance of, or None for free text."""


class Generation:
    """Serves /v1/chat/completions and /v1/completions with one engine."""

    def __init__(
        self, spec: WorkerSpec, engine: Engine, tokenizer: Tokenizer, stats: Stats, account: Account
    ) -> None:
        self._spec = spec
        self._engine = engine
        self._tokenizer = tokenizer
        self._stats = stats
        self._account = account
        self._fingerprint = f"vllm-0.32.0-{checksum(tokenizer.encode(spec.model), spec.seed):08x}"

    def chat(self, body: ChatBody, request: Request, exchange: Exchange) -> None:
        prompt = prompt_of(
            body.messages,
            self._tokenizer,
            generate=body.add_generation_prompt,
            continue_final=body.continue_final_message,
        )
        called = _called(body, checksum(prompt))
        tool = None if called is None else _tool_to_call(body, called, request)
        wording = ChatFormat(
            self._heading("chatcmpl", body, request),
            token_ids=bool(body.return_token_ids),
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            tool=tool,
            prefix=text_of(body.messages[-1]) if body.echo and body.continue_final_message else "",
        )
        schema = called.function.parameters or {"type": "object"} if called else _schema(body)
        max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        request.choices = self._run(Asked([prompt], wording, max_tokens, schema), body, request, exchange)

    def completion(self, body: CompletionBody, request: Request, exchange: Exchange) -> None:
        prompts = read_prompts(body.prompt, self._tokenizer, "prompt")
        per_prompt = _choices(body)
        wording = CompletionFormat(
            self._heading("cmpl", body, request),
            token_ids=bool(body.return_token_ids),
            top_logprobs=body.logprobs,
            echoes=[self._tokenizer.decode(ids) for ids in prompts for _ in range(per_prompt)]
            if body.echo
            else None,
        )
        max_tokens = 16 if body.max_tokens is None else body.max_tokens
        request.choices = self._run(
            Asked(prompts, wording, max_tokens, _schema(body)), body, request, exchange
        )

    def _run(self, asked: Asked, body: GenerateBody, request: Request, exchange: Exchange) -> list[list[int]]:
        """Check everything, then hand it all to the engine at once. The tokens of each choice, as they come."""
        options = body.stream_options
        if options is not None and not body.stream:
            message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
            raise Refused(400, message, param="stream_options")
        _expect_logprobs(body)
        per_prompt = _choices(body)
        plans = [(ids, self._sampling(ids, asked, body, exchange.slowness)) for ids in asked.prompts]
        if self._engine.full:
            self._engine.rejected += 1
            raise busy()

        def finished(counted: Counted) -> None:
            self._stats.finished(counted.prompt, counted.cached, counted.completion)
            self._account.note(request, counted.prompt, counted.cached, counted.completion)

        reply: StreamReply | WholeReply
        if body.stream:
            usage = StreamUsage()
            if options is not None:
                continuous = bool(options.include_usage and options.continuous_usage_stats)
                usage = StreamUsage(bool(options.include_usage), continuous)
            reply = StreamReply(exchange, asked.wording, per_prompt, finished, usage)
            exchange.open_stream()
            if exchange.over:
                return []
        else:
            reply = WholeReply(exchange, asked.wording, per_prompt, finished)
        sequences: list[Sequence] = []
        for ids, sampling in plans:
            for choice in range(per_prompt):
                source = self._source(ids, choice, body.seed, asked.script)
                stops = Stops(body.stop_strings, include=body.include_stop_str_in_output)
                sequences.append(Sequence(len(sequences), ids, source, stops, sampling, reply))
        reply.begin(sequences)
        exchange.on_lost = lambda: self._abort(request, sequences)
        for sequence in sequences:
            self._engine.submit(sequence)
        return [sequence.emitted for sequence in sequences]

    def _abort(self, request: Request, sequences: list[Sequence]) -> None:
        if all(sequence.done for sequence in sequences):
            return  # the answer was complete, only its way to the client was not
        self._stats.requests_aborted += 1
        read, cached = sequences[0].prompt_ids, sequences[0].cached_tokens
        self._account.note(request, len(read), cached, request.tokens_made, "aborted")
        for sequence in sequences:
            self._engine.abort(sequence)

    def _sampling(self, ids: list[int], asked: Asked, body: GenerateBody, slowness: float) -> Sampling:
        room = self._spec.max_model_len - len(ids)
        if room <= 0:
            raise prompt_too_long(len(ids), self._spec.max_model_len)
        wanted = asked.max_tokens
        if wanted is not None and wanted < 1:
            raise bad_value("max_tokens", wanted, f"max_tokens must be at least 1, got {wanted}.")
        if wanted is not None and wanted > room:
            most = self._spec.max_model_len
            message = (
                f"'max_tokens' or 'max_completion_tokens' is too large: {wanted}. This model's maximum context length "
                f"is {most} tokens and your request has {len(ids)} input tokens ({wanted} > {most} - {len(ids)})."
            )
            raise bad_value("max_tokens", wanted, message)
        return Sampling(
            max_tokens=room if wanted is None else wanted,
            min_tokens=body.min_tokens,
            ignore_eos=body.ignore_eos,
            stop_token_ids=tuple(body.stop_token_ids or ()),
            priority=body.priority,
            cache_salt=body.cache_salt,
            slowness=slowness,
        )

    def _source(self, ids: list[int], choice: int, seed: int | None, schema: Any) -> Source:
        dice_seed = self._spec.seed + (seed or 0) + choice * 0x9E3779B1
        if schema is None:
            return FreeText(ids, dice_seed)
        state = checksum(ids, dice_seed)
        text = msgspec.json.encode(instance(schema, random.Random(state))).decode()
        return Script(self._tokenizer.encode(text), state)

    def _heading(self, prefix: str, body: GenerateBody, request: Request) -> Heading:
        request_id = request.header(b"x-request-id") or body.request_id or os.urandom(8).hex()
        return Heading(f"{prefix}-{request_id}", int(time.time()), self._spec.model, self._fingerprint)


def _expect_logprobs(body: GenerateBody) -> None:
    asked = body.top_logprobs if isinstance(body, ChatBody) else None
    asked = body.logprobs if isinstance(body, CompletionBody) else asked
    if asked is not None and asked > MOST_LOGPROBS:
        message = f"Requested sample logprobs of {asked}, which is greater than max allowed: {MOST_LOGPROBS}"
        raise bad_value("logprobs", asked, message)


def _choices(body: GenerateBody) -> int:
    number = 1 if body.n is None else body.n
    if number < 1:
        raise bad_value("n", number, f"n must be at least 1, got {number}.")
    if number > MOST_CHOICES:
        message = f"n must be at most {MOST_CHOICES}, got {number}. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
        raise bad_value("n", number, message)
    return number


def _schema(body: GenerateBody) -> Any:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return _ANY_OBJECT
    if (
        wanted.type == "json_schema"
        and wanted.json_schema is not None
        and wanted.json_schema.schema is not None
    ):
        return wanted.json_schema.schema
    raise Refused(400, f"response_format of type {wanted.type} without a schema", param="response_format")


def _called(body: ChatBody, roll: int) -> ToolSpec | None:
    """The tool that the answer calls, if it calls one: as told, or where the choice is its own, one prompt in eight."""
    if not body.tools or body.tool_choice == "none":
        return None
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        named = next((tool for tool in body.tools if tool.function.name == name), None)
        if named is None:
            message = "The tool specified in `tool_choice` does not match any of the specified `tools`"
            raise Refused(400, message, param="tool_choice")
        return named
    users = [message for message in body.messages if message.role == "user"]
    told = bool(users) and body.messages[-1].role == "user" and "use the tool" in text_of(users[-1]).lower()
    if body.tool_choice == "required" or told or roll % 8 == 0:
        return body.tools[roll % len(body.tools)]
    return None


def _tool_to_call(body: ChatBody, called: ToolSpec, request: Request) -> CalledTool:
    """The call; where the client named the function, vLLM gives finish_reason "stop", else "tool_calls"."""
    return CalledTool(
        name=called.function.name,
        id=f"chatcmpl-tool-{request.header(b'x-request-id') or os.urandom(8).hex()}",
        by_choice_of_model=body.tool_choice in (None, "auto"),
        finish_reason="stop" if isinstance(body.tool_choice, NamedTool) else "tool_calls",
    )
