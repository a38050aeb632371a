"""The section of the configuration for TLS with clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gateway.config_section import Location, Section
from gateway.tls import CertificateProblem, context_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class TlsSection(Section):
    cert_file: Path = Field(
        description="PEM file with the certificate, and behind it those that lead to the CA."
    )
    key_file: Path = Field(
        description="PEM file with its key, without a passphrase. Both are read again when they change."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        files = given.get("cert_file"), given.get("key_file")
        if all(isinstance(file, str | Path) for file in files):
            try:
                context_of(*map(Path, map(str, files)))
            except CertificateProblem as problem:
                yield (), str(problem)
