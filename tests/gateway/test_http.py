"""What becomes of a request where the gateway itself fails."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
from config_files import MINIMAL, Read
from site_served import reply, serving

from gateway.auth import Key
from gateway.callers import Callers
from gateway.catalog import Catalog
from gateway.console.session import Sessions
from gateway.cors import Origins
from gateway.http import Edge
from gateway.source import Sources
from gateway.telemetry import Telemetry

if TYPE_CHECKING:
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
