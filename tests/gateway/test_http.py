"""What becomes of a request where the gateway itself fails."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
from config_files import MINIMAL, Read
from site_served import reply, serving

from gateway.allowance import Slice
from gateway.auth import Key
from gateway.callers import Callers
from gateway.catalog import Catalog
from gateway.console.session import Sessions
from gateway.cors import Origins
from gateway.http import Edge
from gateway.limit_accounts import Accounts
from gateway.limit_store import NoStore
from gateway.limits import Hold
from gateway.policy import Policy
from gateway.source import Sources
from gateway.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.client import Client

BODY = b'{"model": "llama", "messages": []}'


class Defective:
    """In place of the dispatch: it fails before the first byte, or behind it."""

    def __init__(self, *, begins: bool) -> None:
        self._begins = begins

    async def serve(self, _request: object, _offer: object, _arrival: object, client: Client) -> None:
        if self._begins:
            client.start(200, b"content-type: text/event-stream\r\n")
            client.write(b"data: {}\n\n")
        raise ZeroDivisionError("made for this test")


@pytest.mark.parametrize("begins", [False, True], ids=["before the first byte", "behind it"])
async def test_a_defect_is_told_by_the_name_under_which_the_log_has_it(
    read: Read, caplog: pytest.LogCaptureFixture, *, begins: bool
):
    catalog = Catalog(read(MINIMAL), 0)
    key = Key(id="", tenant="t")
    callers = Callers(key, Sources(), Sessions(b"made up"))
    edge = Edge(Defective(begins=begins), catalog, callers, Origins(()), Telemetry(), None, lambda _: None)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nx-request-id: of-the-client\r\n"
    with caplog.at_level(logging.ERROR, "gateway.http"):
        async with serving(edge) as site, site.connected() as (reader, writer):
            writer.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(BODY), BODY))
            if begins:
                said = await reader.readuntil(b"0\r\n\r\n")
                said = said[said.index(b'data: {"error"') + 6 :].partition(b"\n\n")[0]
                assert b"[DONE]" not in said
            else:
                said = await reply(reader)
    error = json.loads(said)["error"]
    assert error["code"] == "internal_error"
    assert "of-the-client" in error["message"]
    (record,) = caplog.records
    assert "of-the-client" in record.getMessage()
    assert "ZeroDivisionError" in caplog.text
    assert edge.running == 0


class Holds:
    """In place of what is asked for limits: it holds something of a slice for each call."""

    def __init__(self) -> None:
        self.slice = Slice("key:k/calls", "calls", 1)
        self.slice.lease = 1
        self.accounts = Accounts(NoStore(), NoLedger(), "p")

    async def hold(self, _caller: Key, _request: object, _offer: object, call_id: str) -> Hold:
        self.slice.take(1)
        self.accounts.holds += 1
        return Hold(self.accounts, call_id, [(self.slice, 1)])


class NoLedger:
    """Of calls that cost nothing."""

    def nano_usd(self, accounts: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(accounts, 0)


async def test_what_a_call_holds_is_released_where_the_gateway_fails_before_it_is_dispatched(read: Read):
    class Untraceable:
        def begin(self, _request: object, _client: object) -> None:
            raise ZeroDivisionError("made for this test")

    catalog, limiter = Catalog(read(MINIMAL), 0), Holds()
    key = Key(id="k", tenant="t", bounds=(("key:k", Policy(concurrency=1)),))
    callers = Callers(key, Sources(), Sessions(b"made up"))
    edge = Edge(Defective(begins=False), catalog, callers, Origins(()), Telemetry(), limiter, lambda _: None)
    edge.tracing = Untraceable()
    async with serving(edge) as site, site.connected() as (reader, writer):
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b"
            % (len(BODY), BODY)
        )
        assert json.loads(await reply(reader))["error"]["code"] == "internal_error"
    assert (limiter.slice.held, limiter.accounts.holds, edge.running) == (0, 0, 0)
