"""What `tidegate doctor` finds of webhooks: whether they can be reached. Nothing is sent there: any event would be counted."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from backends.checkup import Finding

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.config_events import WebhookSection

_CONNECT_S = 3.0


async def webhook_findings(config: Config) -> list[Finding]:
    return await asyncio.gather(*(_reached(name, section) for name, section in config.events.items()))


async def _reached(name: str, section: WebhookSection) -> Finding:
    url, about = urlsplit(section.url), f"events.{name}"
    tls = ssl.create_default_context(cafile=section.ca_file) if url.scheme == "https" else None
    port = url.port or (443 if tls else 80)
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(url.hostname, port, ssl=tls)
    except OSError as error:  # a TimeoutError is one
        words = str(error) or f"no connection within {_CONNECT_S:g} s"
        advice = "events wait until it can be: see its url, ca_file, and what is between (a proxy is not asked here)"
        return Finding(about, "warning", f"{url.hostname}:{port} cannot be reached: {words}", advice)
    writer.transport.abort()
    return Finding(about, "ok", f"{url.hostname}:{port} takes connections; nothing was sent there")
