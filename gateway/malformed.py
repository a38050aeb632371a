"""What is wrong with a body that cannot be read, in words and with its place: a decoder speaks of its own types and offsets."""

from __future__ import annotations

import re

from gateway.errors import ApiError

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>[^`]+)`")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]+)`")
_LONGEST_WORDS = 400
"""Of a decoder's message: it may repeat a name that the client made up."""


def invalid_field(text: str) -> ApiError:
    """A field of the wrong type, as msgspec puts it, in words and with the field's name."""
    if len(text) > _LONGEST_WORDS:
        text = f"{text[: _LONGEST_WORDS // 2]}...{text[-_LONGEST_WORDS // 2 :]}"
    place = _PLACE.match(text)
    what, path = (text, "") if place is None else (place["what"], place["path"] or "")
    path = path.removeprefix(".")
    if missing := _MISSING.search(what):
        param = f"{path}.{missing['name']}" if path else missing["name"]
        return ApiError("missing_required_parameter", f"{param} is missing", param=param)
    unknown = _UNKNOWN.search(what)
    if unknown:
        path = f"{path}.{unknown['name']}" if path else unknown["name"]
        return ApiError("invalid_value", f"{path} is no field of this object", param=path)
    code = "invalid_type" if ", got `" in what else "invalid_value"
    subject = path or "the body"
    return ApiError(code, f"{subject}: {what[:1].lower()}{what[1:]}", param=path or None)


def place_of(body: bytes, error: Exception) -> str:
    """The decoder's words, with line and column in place of an offset."""
    text = str(error)
    if not body:
        return "it is empty"
    offset = error.start if isinstance(error, UnicodeDecodeError) else None
    if offset is None and (found := re.search(r" \(byte (\d+)\)", text)):
        offset = int(found[1])
        text = text.replace(found[0], "")
    if offset is None:
        return text
    before = body[:offset]
    line, column = before.count(b"\n") + 1, offset - before.rfind(b"\n")
    return f"{text} at line {line}, column {column}"
