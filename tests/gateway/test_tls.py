"""TLS with clients, on real sockets with certificates of a throw-away CA."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme
from config_files import MINIMAL
from site_served import LIMIT_S, Site, serving

from gateway.config_tls import TlsSection
from gateway.tls import Certificate

if TYPE_CHECKING:
    from pathlib import Path

    from config_files import Problems, Read

    from gateway.client import Client


class Files:
    """A certificate with its key, renewed as a tool would."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        self.renew()

    def renew(self, *, key: bool = True) -> None:
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("localhost")
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        if key:
            self.key.write_bytes(issued.private_key_pem.bytes())

    @property
    def section(self) -> TlsSection:
        return TlsSection(cert_file=self.cert, key_file=self.key)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def hello(client: Client) -> None:
    await client.body(1_000_000)
    client.start(200, b"")
    for _ in range(200):
        client.write(client.scheme.encode() * 1000)
        await client.drain()
    client.finish(b"!")


async def asked(site: Site, authority: trustme.CA) -> bytes:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", site.port, ssl=context, server_hostname="localhost"
    )
    writer.write(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(LIMIT_S):
        said = await reader.read()
    writer.close()
    return said


async def test_calls_are_answered_over_tls(files: Files):
    async with serving(hello, tls=Certificate(files.section).context) as site:
        said = await asked(site, files.authority)
        assert said.startswith(b"HTTP/1.1 200 OK")
        assert said.count(b"https") == 200_000


async def test_plain_http_gets_no_answer_and_holds_nothing_up(files: Files):
    async with serving(hello, tls=Certificate(files.section).context) as site:
        async with site.connected() as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
            assert b"HTTP" not in await reader.read()
        assert await asked(site, files.authority)


async def test_a_handshake_that_does_not_come_is_not_waited_for(files: Files):
    async with serving(hello, tls=Certificate(files.section).context, head_s=0.2) as site:
        async with site.connected() as (reader, _):
            async with asyncio.timeout(LIMIT_S):
                assert await reader.read() == b""


async def test_a_renewed_certificate_is_shown_to_whoever_connects_from_then_on(files: Files):
    certificate = Certificate(files.section)
    async with serving(hello, tls=certificate.context) as site:
        before = files.authority
        assert await asked(site, before)
        files.renew()
        await certificate.look()
        assert await asked(site, before), "it may still be being written"
        await certificate.look()
        assert await asked(site, files.authority)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asked(site, before)


async def test_a_certificate_without_its_key_is_not_taken(files: Files):
    certificate = Certificate(files.section)
    async with serving(hello, tls=certificate.context) as site:
        before = files.authority
        files.renew(key=False)
        for _ in range(3):
            await certificate.look()
        assert await asked(site, before)
        files.cert.unlink()
        for _ in range(3):
            await certificate.look()
        assert await asked(site, before)


def test_the_configuration_says_what_is_wrong_with_the_files(read: Read, problems: Problems, files: Files):
    text = MINIMAL + f"server: {{tls: {{cert_file: {files.cert}, key_file: {files.key}}}}}\n"
    assert read(text).server.scheme == "https"
    files.renew(key=False)
    assert "are no certificate with its key" in problems(text)["server.tls"]
    files.key.unlink()
    assert "cannot be read: No such file" in problems(text)["server.tls"]
