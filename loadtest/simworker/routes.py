"""The routes of a worker: vLLM's, and those by which tests order faults and look inside."""

from __future__ import annotations

import base64
import logging
import os
import random
import time
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from loadtest.simworker import bodies
from loadtest.simworker.bodies import read_body
from loadtest.simworker.connection import Exchange, Request
from loadtest.simworker.errors import (
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    Refused,
    error_body,
    leaving,
    unknown_model,
)
from loadtest.simworker.faults import FaultBook, read_faults
from loadtest.simworker.generation import Generation
from loadtest.simworker.metrics import metrics_text
from loadtest.simworker.prompts import prompt_of, read_prompts
from loadtest.simworker.source import checksum
from loadtest.simworker.tokenizer import Tokenizer, token_bytes
from loadtest.simworker.wire import (
    DetokenizeReply,
    Embedding,
    EmbeddingReply,
    ModelCard,
    ModelList,
    ModelPermission,
    TokenizeReply,
    UsageBody,
)

if TYPE_CHECKING:
    from loadtest.simworker.account import Account
    from loadtest.simworker.engine import Engine
    from loadtest.simworker.spec import WorkerSpec
    from loadtest.simworker.tape import Stats, Tape

_EMBEDDING_DIMENSIONS = 64
_LOG = logging.getLogger(__name__)
_METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"

Route = Callable[[Request, Exchange], None]


class Routes:
    def __init__(
        self,
        spec: WorkerSpec,
        engine: Engine,
        faults: FaultBook,
        stats: Stats,
        tape: Tape,
        account: Account,
    ) -> None:
        self._spec = spec
        self._engine = engine
        self._faults = faults
        self._stats = stats
        self._tape = tape
        self._account = account
        self._started = int(time.time())
        self._tokenizer = Tokenizer()
        self._generation = Generation(spec, engine, self._tokenizer, stats, account)
        self._routes: dict[str, dict[str, Route]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completion},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/health": {"GET": self._empty},
            "/ping": {"GET": self._empty, "POST": self._empty},
            "/version": {"GET": self._version},
            "/load": {"GET": self._load},
            "/metrics": {"GET": self._metrics},
            "/faults": {"GET": self._faults_left, "POST": self._order_faults},
            "/sim/stats": {"GET": self._sim_stats},
            "/sim/requests": {"GET": self._sim_requests},
        }
        if spec.embeddings:
            self._routes["/v1/embeddings"] = {"POST": self._embed}
        self.leaving = False
        """Whether requests for work are refused because the worker is going."""

    def answer(self, request: Request, exchange: Exchange) -> None:
        methods = self._routes.get(request.target.partition("?")[0])
        if methods is None:
            exchange.reply(404, NOT_FOUND)
            return
        route = methods.get(request.method)
        if route is None:
            exchange.reply(405, METHOD_NOT_ALLOWED, headers=f"allow: {', '.join(methods)}\r\n")
            return
        try:
            self._check_work(request)
            route(request, exchange)
        except Refused as refused:
            self._stats.requests_refused += 1
            exchange.reply(refused.status, refused.body)
        except Exception as error:  # noqa: BLE001 - the edge: a request that cannot be dealt with harms no other
            _LOG.exception("cannot answer %s %s", request.method, request.target)
            exchange.reply(500, error_body(500, str(error), "InternalServerError"))

    # Work

    def _check_work(self, request: Request) -> None:
        if not request.is_work:
            return
        if "json" not in (request.header(b"content-type") or "").lower():
            detail = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise Refused(400, detail, "Bad Request")
        if self.leaving:
            raise leaving()

    def _chat(self, request: Request, exchange: Exchange) -> None:
        body = read_body(request.body, bodies.ChatBody)
        self._check_name(body.model)
        self._generation.chat(body, request, exchange)

    def _completion(self, request: Request, exchange: Exchange) -> None:
        body = read_body(request.body, bodies.CompletionBody)
        self._check_name(body.model)
        self._generation.completion(body, request, exchange)

    def _embed(self, request: Request, exchange: Exchange) -> None:
        body = read_body(request.body, bodies.EmbeddingBody)
        self._check_name(body.model)
        prompts = read_prompts(body.input, self._tokenizer, "input")
        dimensions = body.dimensions or _EMBEDDING_DIMENSIONS
        data = []
        for index, ids in enumerate(prompts):
            vector = _vector(checksum(ids, self._spec.seed), dimensions)
            packed = base64.b64encode(array("f", vector).tobytes()).decode()
            data.append(Embedding(index, "embedding", packed if body.encoding_format == "base64" else vector))
        tokens = sum(map(len, prompts))
        self._stats.finished(tokens, 0, 0)
        self._account.note(request, tokens, 0, 0)
        reply_id = f"embd-{request.header(b'x-request-id') or os.urandom(8).hex()}"
        usage = UsageBody(tokens, tokens, 0, None)
        _send(exchange, EmbeddingReply(reply_id, "list", int(time.time()), self._spec.model, data, usage))

    # About the model

    def _models(self, request: Request, exchange: Exchange) -> None:
        del request
        model = self._spec.model
        permission = ModelPermission(f"modelperm-{os.urandom(8).hex()}", "model_permission", self._started)
        card = ModelCard(
            model, "model", self._started, "vllm", model, None, self._spec.max_model_len, [permission]
        )
        _send(exchange, ModelList("list", [card]))

    def _tokenize(self, request: Request, exchange: Exchange) -> None:
        body = read_body(request.body, bodies.TokenizeBody)
        self._check_name(body.model)
        if body.messages is not None:
            ids = prompt_of(
                body.messages,
                self._tokenizer,
                generate=body.add_generation_prompt,
                continue_final=body.continue_final_message,
            )
        elif body.prompt is not None:
            ids = self._tokenizer.encode(body.prompt)
        else:
            raise Refused(400, "Either prompt or messages must be given.", "Bad Request", "prompt")
        texts = (
            [token_bytes(token).decode(errors="replace") for token in ids] if body.return_token_strs else None
        )
        _send(exchange, TokenizeReply(len(ids), self._spec.max_model_len, ids, texts))

    def _detokenize(self, request: Request, exchange: Exchange) -> None:
        body = read_body(request.body, bodies.DetokenizeBody)
        self._check_name(body.model)
        try:
            text = self._tokenizer.decode(body.tokens)
        except ValueError as error:
            raise Refused(400, str(error), param="tokens") from error
        _send(exchange, DetokenizeReply(text))

    def _check_name(self, model: str | None) -> None:
        if model is not None and model != self._spec.model:
            raise unknown_model(model, self._spec.model)

    # About the process

    def _empty(self, request: Request, exchange: Exchange) -> None:
        del request
        exchange.reply(200, b"", None)

    def _version(self, request: Request, exchange: Exchange) -> None:
        del request
        exchange.reply(200, b'{"version":"0.32.0"}')

    def _load(self, request: Request, exchange: Exchange) -> None:
        del request
        _send(exchange, {"server_load": len(self._engine.running) + len(self._engine.waiting)})

    def _metrics(self, request: Request, exchange: Exchange) -> None:
        del request
        exchange.reply(200, metrics_text(self._engine).encode(), _METRICS_TYPE)

    # For tests

    def _faults_left(self, request: Request, exchange: Exchange) -> None:
        del request
        _send(exchange, self._faults.left())

    def _order_faults(self, request: Request, exchange: Exchange) -> None:
        try:
            self._faults.replace(read_faults(request.body))
        except msgspec.DecodeError as error:
            raise Refused(400, str(error), "Bad Request") from error
        _send(exchange, self._faults.left())

    def _sim_stats(self, request: Request, exchange: Exchange) -> None:
        del request
        engine = self._engine
        self._stats.generated_tokens = engine.generated_tokens
        self._stats.running, self._stats.waiting = len(engine.running), len(engine.waiting)
        _send(exchange, self._stats)

    def _sim_requests(self, request: Request, exchange: Exchange) -> None:
        del request
        _send(exchange, self._tape.to_json())


def _send(exchange: Exchange, body: Any) -> None:
    exchange.reply(200, msgspec.json.encode(body))


def _vector(seed: int, dimensions: int) -> list[float]:
    """A unit vector that is the same for the same text."""
    dice = random.Random(seed)
    raw = [dice.gauss(0, 1) for _ in range(dimensions)]
    length = sum(value * value for value in raw) ** 0.5
    return [value / length for value in raw]
