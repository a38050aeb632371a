"""What an endpoint is asked that is to go on with an answer, and the stream that reads the rest.

Where an answer has broken off with all the tokens written that it may have, nobody is asked: its end is made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from backends import handover
from backends.continuation import Continued, Seam
from backends.handover import CannotGoOn
from backends.said import crc_of
from backends.sse import Shown
from backends.stops import Stops
from backends.tokens import prompt_tokens, text_of
from backends.worker import Outgoing
from gateway.traits import shows_ids

if TYPE_CHECKING:
    from backends.fleet import Fleet
    from backends.handover import Fields
    from backends.member import Attempt, Member
    from backends.sse import CompletionStream
    from gateway.arrival import Arrival
    from gateway.broken import Broken
    from gateway.catalog import Catalog
    from gateway.openai import Request
    from routing.resume import Way
    from routing.types import Call, Candidate, Endpoint, Usage

_API_PATHS = {"chat": "/chat/completions", "completions": "/completions"}


_NOTHING_MORE = (
    b'data: {"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length","stop_reason":null}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":0}}\n\n'
)
"""As a worker says it that was asked for plain completion."""


class Rest:
    """Of the answer to one call."""

    def __init__(self, catalog: Catalog, fleet: Fleet, request: Request, arrival: Arrival) -> None:
        """`request` is the call's as the first worker was asked it: for a stream."""
        self._catalog = catalog
        self._fleet = fleet
        self._request = request
        self._arrival = arrival
        self._chat = request.api == "chat"

    def is_written(self, stream: CompletionStream, begun: Endpoint) -> bool:
        """Whether all tokens have come that there may be, and nothing but the end is missing."""
        said = stream.said
        if said is None or not said.knows_ids or stream.holds:
            return False
        limit = handover.token_limit(self._request.fields, chat=self._chat)
        if limit is not None and said.tokens >= limit:
            return True
        context_tokens, prompt = begun.context_tokens, said.prompt_tokens
        return context_tokens is not None and prompt is not None and prompt + said.tokens >= context_tokens

    def end(self, broken: Broken, unseen: str) -> tuple[bytes, Usage | None]:
        """The end of such an answer, and its usage: as if somebody had gone on with it who had nothing to write.

        `unseen` is what was held back for a stop string.
        """
        said = broken.said
        seam = self._seam(broken, said.tokens, said.text.decode(errors="replace"), unseen)
        stream = Continued(self._shown(broken.begun), self._catalog.limits.event_bytes, said, seam)
        read = seam.prompt_tokens + seam.own_tokens
        block = stream.feed(_NOTHING_MORE % (read, read))
        return block, stream.told

    async def unseen(self, member: Member, broken: Broken, patience_s: float) -> str | None:
        """What of it was held back for a stop string; None where that is not known.

        Raises AttemptFailed, CallRejected or CannotGoOn.
        """
        said = broken.said
        _, text = await text_of(member, said.token_ids(), patience_s)
        return handover.beyond(said.text.decode(errors="replace"), text)

    @property
    def has_stop_strings(self) -> bool:
        return bool(handover.stop_strings(self._request.fields))

    def attempt(
        self, broken: Broken, call: Call, candidate: Candidate, fields: Fields, seam: Seam, way: Way
    ) -> tuple[Attempt, Continued]:
        """What asks the candidate for the rest, and what reads it."""
        api = "completions" if seam.by_ids else self._request.api
        request = structs.replace(self._request, api=api, fields=fields)
        endpoint, traced = candidate.endpoint, self._arrival.traced
        watch = None if traced is None else traced.attempt(endpoint, way)
        outgoing = Outgoing(
            api=_API_PATHS[request.api],
            body=request.body_for(
                endpoint.served_model,
                worker=endpoint.kind == "worker",
                ids=seam.by_ids or shows_ids(self._request),
            ),
            request_id=self._arrival.request_id,
            stream=True,
            ends_s=self._arrival.started_s + self._catalog.total_s,
            trace=self._arrival.trace if watch is None else watch.lines,
            watch=watch,
        )
        stream = Continued(self._shown(endpoint), self._catalog.limits.event_bytes, broken.said, seam)
        return self._fleet.attempt(candidate, outgoing, call), stream

    def _shown(self, endpoint: Endpoint) -> Shown:
        request = self._request
        return Shown(
            endpoint.model,
            request.tier if request.tier_asked else None,
            usage=request.shows_usage,
            ids=shows_ids(request),
        )

    async def from_token(self, member: Member, broken: Broken, patience_s: float) -> tuple[Fields, Seam]:
        fields, said, chat = self._request.fields, broken.said, self._chat
        strings, context_tokens = handover.stop_strings(fields), 0
        prompt = None if chat else handover.given_ids(fields)
        if prompt is None:
            body = handover.prompt_request(fields, chat=chat, served_model=member.endpoint.served_model)
            told = await prompt_tokens(member, body, patience_s)
            prompt, context_tokens = told.tokens, told.max_model_len
            if said.prompt_tokens is not None and crc_of(msgspec.json.encode(prompt)) != said.prompt_crc:
                raise CannotGoOn("the prompt is other tokens there")
        ids, text = await text_of(member, said.token_ids() if strings else said.settled_ids(), patience_s)
        shown = said.text.decode(errors="replace")
        held = handover.beyond(shown, text) if strings else ""
        if held is None:
            raise CannotGoOn("what has been held back for a stop string is not known")
        goes_on_with = handover.from_token(
            fields, chat=chat, prompt=prompt, ids=ids, context_tokens=context_tokens
        )
        seam = self._seam(broken, len(ids), shown, held)
        return goes_on_with, structs.replace(
            seam,
            by_ids=True,
            prompt_tokens=len(prompt),
            estimated=False,
            told_again=max(said.tokens, said.told) - len(ids),
        )

    def from_text(self, broken: Broken) -> tuple[Fields, Seam]:
        said, tokens = broken.said, broken.tokens
        text = said.text.decode(errors="replace")
        fields = handover.from_text(self._request.fields, chat=self._chat, text=text, tokens=tokens)
        return fields, self._seam(broken, tokens, text, "")

    def _seam(self, broken: Broken, own_tokens: int, shown: str, held: str) -> Seam:
        fields, known = self._request.fields, broken.said.prompt_tokens
        strings, include = handover.stop_strings(fields), handover.shows_stop_string(fields)
        return Seam(
            chat=self._chat,
            own_tokens=own_tokens,
            by_ids=False,
            prompt_tokens=self._request.prompt_tokens if known is None else known,
            cached_tokens=broken.stream.prompt_cached,
            estimated=known is None,
            stops=Stops(strings, shown, held, include=include) if strings else None,
            top_logprobs=handover.count_in(fields, "top_logprobs"),
            min_tokens=handover.count_in(fields, "min_tokens"),
        )
