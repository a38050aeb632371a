"""What `tidegate doctor` finds at an endpoint: each step on the way to an answer, and what to do where one fails.

The gateway itself learns only that an endpoint fails, at the time of a call. Here the way is gone step by step (name, port,
TLS, key, model, one token, KV events), so that what is wrong is told by the first step that does not work.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import httpx2
import msgspec
from msgspec import Struct

from backends.base import UNREADABLE
from backends.kv_checkup import kv_findings
from backends.probe import ANSWER_BYTES, ASKS, MODELS_BYTES, apis, models_in, named

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from backends.probe import Card
    from backends.worker import Access
    from routing.types import Endpoint

Level = Literal["ok", "warning", "error"]

SKEW_S = 5.0
"""Of two clocks. A `date` header has whole seconds, and may have been made a second ago."""
CERTIFICATE_DAYS = 14
"""Left to a certificate, below which it is worth a word."""


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    about: str
    level: Level
    found: str
    advice: str = ""
    """What to do about it."""


class Within(Struct, frozen=True):
    """How long each step may take."""

    connect_s: float
    answer_s: float
    """For the token that a worker has to make."""


class _Stop(Exception):
    """A step fails, and those behind it cannot be tried."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.found = found
        self.advice = advice


class _Answer(Struct):
    status: int
    body: bytes
    skew_s: float | None


async def checkup(about: str, endpoint: Endpoint, access: Access, within: Within) -> list[Finding]:
    """What is found at a worker or a provider. A worker makes a token; a provider, who charges for them, only lists models."""
    found: list[Finding] = []
    try:
        async for each in _Checkup(about, endpoint, access, within).steps():
            found.append(each)  # noqa: PERF401 - what was found before a step that fails counts too
    except _Stop as stop:
        found.append(Finding(about, "error", stop.found, stop.advice))
    return found


class _Checkup:
    def __init__(self, about: str, endpoint: Endpoint, access: Access, within: Within) -> None:
        parts = urlsplit(access.url)
        self._about = about
        self._endpoint = endpoint
        self._access = access
        self._within = within
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context(cafile=access.ca_file) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._root = access.url + ("/v1" if endpoint.kind == "worker" else "")

    async def steps(self) -> AsyncIterator[Finding]:
        addresses = await self._resolved()
        if addresses != [self._host]:
            yield self._ok(f"{self._host} is {', '.join(addresses[:4])}")
        async for each in self._connected():
            yield each
        # For plain HTTP an empty context, or httpx2 would read all the system's certificates.
        tls = self._tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with httpx2.AsyncClient(verify=tls, trust_env=False) as client:
            async for each in self._listed(client):
                yield each
            if self._endpoint.kind == "worker":
                yield await self._answered(client)
            source = self._access.kv_events
            if source is not None:
                for level, words, advice in await kv_findings(
                    source, self._ask(client), self._within.connect_s
                ):
                    yield Finding(self._about, level, words, advice)

    def _ok(self, found: str) -> Finding:
        return Finding(self._about, "ok", found)

    def _warning(self, found: str, advice: str) -> Finding:
        return Finding(self._about, "warning", found, advice)

    async def _resolved(self) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _Stop(
                f"{self._host} has no address: {_words(error)}",
                "correct the host in its URL, or see that the name server of this machine knows it",
            ) from None
        return sorted({str(info[4][0]) for info in infos})

    async def _connected(self) -> AsyncIterator[Finding]:
        where = f"{self._host}:{self._port}"
        try:
            async with asyncio.timeout(self._within.connect_s):
                _, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        except ssl.SSLCertVerificationError as error:
            raise _Stop(
                f"the certificate of {where} is not trusted: {error.verify_message}",
                "give the CA that has signed it as ca_file, or have it renewed; its name must be the URL's host",
            ) from None
        except ssl.SSLError as error:
            raise _Stop(
                f"{where} does not speak TLS as we do: {error.reason or error}",
                "where it speaks plain HTTP, its URL begins with http://",
            ) from None
        except TimeoutError:
            raise _Stop(
                f"{where} lets nobody connect within {self._within.connect_s:g} s",
                "see that it runs, and that no firewall drops what is sent there",
            ) from None
        except OSError as error:
            raise _Stop(
                f"nothing accepts connections at {where}: {_words(error)}",
                "start it, or correct host and port of its URL",
            ) from None
        certificate = writer.get_extra_info("peercert")
        writer.transport.abort()
        yield self._ok(
            f"{where} accepts connections" + (", its certificate is trusted" if certificate else "")
        )
        if certificate:
            days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86_400
            if days < CERTIFICATE_DAYS:
                yield self._warning(
                    f"its certificate ends in {days:.0f} days, on {certificate['notAfter']}",
                    "have it renewed",
                )

    async def _listed(self, client: httpx2.AsyncClient) -> AsyncIterator[Finding]:
        """By each of its keys."""
        keys = self._access.api_keys or (None,)
        for number, key in enumerate(keys, start=1):
            answer = await self._asked(client, "GET", "/models", key=key)
            which = "its key" if len(keys) == 1 else f"key {number} of {len(keys)}"
            if answer.status in (401, 403):
                yield Finding(
                    self._about,
                    "error",
                    f"it refuses {which if key else 'to answer without a key'} ({answer.status})",
                    "correct api_key; its environment variable may be empty or out of date"
                    if key
                    else "give api_key",
                )
            elif number == 1:
                for each in self._models(answer):
                    yield each
                if answer.skew_s is not None and abs(answer.skew_s) > SKEW_S:
                    ahead = "ahead of" if answer.skew_s > 0 else "behind"
                    yield self._warning(
                        f"its clock is {abs(answer.skew_s):.0f} s {ahead} ours",
                        "keep both in time (NTP); leases, tokens and certificates go by the clock",
                    )

    def _models(self, answer: _Answer) -> list[Finding]:
        wanted, of_us = self._endpoint.served_model, self._endpoint.kind == "worker"
        if answer.status != 200 and not of_us and answer.status in (404, 405):
            return [
                self._warning(f"it lists no models ({answer.status})", f"see yourself that it has {wanted}")
            ]
        if answer.status != 200:
            raise _Stop(
                f"its list of models is a {answer.status}",
                "see its log; the URL of a provider goes up to and with its /v1, that of a worker has no path",
            )
        try:
            cards = models_in(answer.body)
        except UNREADABLE:
            raise _Stop(
                "what it gives as its list of models is none",
                "another program may listen there: correct the URL",
            ) from None
        card = next((card for card in cards if card.id == wanted), None)
        if card is None:
            advice = f"start it with {wanted}, or correct `model`"
            missing = f"it does not list {wanted}, but {named(cards)}"
            if of_us:
                raise _Stop(missing, advice)
            return [self._warning(missing, advice)]
        return [self._ok(f"it has {wanted}"), *self._context(card)]

    def _context(self, card: Card) -> list[Finding]:
        said, is_there = self._endpoint.context_tokens, card.max_model_len
        if said is None or is_there is None:
            return []
        if said > is_there:
            return [
                Finding(
                    self._about,
                    "error",
                    f"context_tokens is {said}, but it takes {is_there}: longer calls would fail there",
                    f"set context_tokens: {is_there}, or start it with a larger --max-model-len",
                )
            ]
        return [self._ok(f"it takes {is_there} tokens, of which {said} are used")]

    async def _answered(self, client: httpx2.AsyncClient) -> Finding:
        refusals = []
        for api in apis(self._endpoint):
            fields, kind = ASKS[api]
            started_s = time.monotonic()
            answer = await self._ask(client)(api, fields)
            if isinstance(answer, str):
                refusals.append(answer)
                continue
            try:
                msgspec.convert(answer, kind)
            except msgspec.ValidationError:
                refusals.append(f"{api} gives an answer that is none")
                continue
            return self._ok(f"it answers {api} after {time.monotonic() - started_s:.2f} s")
        raise _Stop(
            f"it makes no token: {'; '.join(refusals)}",
            "see its log; an engine that has died leaves a server that still lists its models",
        )

    def _ask(self, client: httpx2.AsyncClient) -> Any:
        """A call there, by which KV events are tried as well: its answer, or why there is none."""

        async def ask(api: str, fields: Mapping[str, Any]) -> Any:
            body = {"model": self._endpoint.served_model, **fields}
            keys = self._access.api_keys or (None,)
            try:
                answer = await self._asked(client, "POST", api, body=body, key=keys[0])
            except _Stop as stop:
                return stop.found
            if answer.status != 200:
                return f"{api} gives a {answer.status}"
            try:
                return msgspec.json.decode(answer.body)
            except UNREADABLE:
                return f"{api} gives no JSON"

        return ask

    async def _asked(
        self, client: httpx2.AsyncClient, method: str, path: str, *, key: str | None, body: Any = None
    ) -> _Answer:
        """One request. Its body is read as far as the gateway would."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        limit_bytes = MODELS_BYTES if body is None else ANSWER_BYTES
        within_s = self._within.connect_s if body is None else self._within.answer_s
        read = b""
        try:
            async with (
                asyncio.timeout(within_s),
                client.stream(
                    method, self._root + path, headers=headers, json=body, timeout=within_s
                ) as reply,
            ):
                skew_s = _skew_s(reply.headers.get("date"))
                async for block in reply.aiter_bytes():
                    read += block
                    if len(read) > limit_bytes:
                        break
        except TimeoutError:
            raise _Stop(
                f"{path} is not answered within {within_s:g} s", "see whether it is overloaded or hangs"
            ) from None
        except httpx2.HTTPError as error:
            raise _Stop(
                f"{path} is not answered: {str(error) or type(error).__name__}",
                "see its log; what listens there may not speak HTTP",
            ) from None
        return _Answer(reply.status_code, read, skew_s)


def _skew_s(date: str | None) -> float | None:
    """How far the clock of whoever says `date` is ahead of ours."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None


def _words(error: OSError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or error.errno is None:
        return getattr(error, "strerror", None) or str(error)
    return os.strerror(error.errno)  # asyncio's own words name the address once more
