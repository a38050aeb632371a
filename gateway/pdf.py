"""The least of PDF that a page of text takes: Courier, which every reader has, and the same bytes for the same text.

Characters that Courier's encoding (Windows-1252) lacks are shown as question marks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LINES = 60
"""Of a page."""
COLUMNS = 92

_PAGE = b"/Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F 3 0 R >> >>"


def document(lines: Sequence[str]) -> bytes:
    """A PDF of A4 pages with these lines, cut where they are too long."""
    pages = [lines[start : start + LINES] for start in range(0, len(lines), LINES)] or [[]]
    first = 4  # of the pages, each with its text behind it
    kids = b" ".join(b"%d 0 R" % (first + 2 * number) for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%b] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
    ]
    for number, page in enumerate(pages):
        text = b"BT /F 9 Tf 12 TL 50 790 Td\n" + b"".join(map(_shown, page)) + b"ET"
        objects += [
            b"<< %b /Contents %d 0 R >>" % (_PAGE, first + 2 * number + 1),
            b"<< /Length %d >>\nstream\n%b\nendstream" % (len(text), text),
        ]
    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, each in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, each)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def _shown(line: str) -> bytes:
    plain = "".join(character if character.isprintable() else " " for character in line[:COLUMNS])
    text = plain.encode("cp1252", "replace")
    return b"(" + text.replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)") + b") '\n"
