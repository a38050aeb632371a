"""TLS with clients: the certificate that the server shows, which is another one as soon as its files are.

Certificates of now live for weeks, and something else renews them. The files are looked at every second; what does not
fit together (a new certificate beside the old key, for a moment) is not taken, and connections that stand keep theirs.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING

from gateway.config_file import stamp_of

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config_tls import TlsSection

log = logging.getLogger(__name__)


class CertificateProblem(Exception):
    """The files are no certificate with its key."""


def context_of(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """What a server shows clients. Raises CertificateProblem."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load(context, cert_file, key_file)
    return context


def _load(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    try:
        # An empty passphrase: without one, OpenSSL would ask for it at the terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        problem = f"{cert_file} and {key_file} are no certificate with its key: {error.reason or error}"
        raise CertificateProblem(problem) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CertificateProblem(f"{cert_file} or {key_file} cannot be read: {reason}") from None


class Certificate:
    """What the server shows, kept in step with its files."""

    def __init__(self, section: TlsSection) -> None:
        self._files = section.cert_file, section.key_file
        self._seen = self._taken = self._stamps()
        self.context = context_of(*self._files)

    async def look(self) -> None:
        """Take the files over if they have changed, once two looks have seen the same."""
        stamps = self._stamps()
        settled, self._seen = stamps == self._seen, stamps
        if not settled or stamps == self._taken:
            return
        self._taken = stamps
        try:
            context_of(*self._files)  # apart first: of a pair that does not fit, half would be taken
            _load(self.context, *self._files)
        except CertificateProblem as problem:
            log.error("the certificate of before is shown on: %s", problem)  # noqa: TRY400 - it is in the files, not in our code
        else:
            log.info("%s has changed, and is shown from now on", self._files[0])

    def _stamps(self) -> tuple[object, ...]:
        return tuple(stamp_of(file) for file in self._files)
