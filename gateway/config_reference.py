"""The configuration's reference for the README, made from the sections themselves."""

from __future__ import annotations

from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import Secret, SecretStr

from gateway.config import Config
from gateway.config_section import Section

if TYPE_CHECKING:
    from collections.abc import Iterator


def config_reference() -> str:
    """Every key of the file with its default and meaning, as a Markdown table."""
    lines = ["| Key | Default | Meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in _rows(Config, "")]
    return "\n".join(lines) + "\n"


def _rows(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        key = prefix + name
        if field.description:
            yield key, _default_text(field.is_required(), field.default), field.description
        below = _below(field.annotation)
        if below is not None:
            yield from _rows(below[0], key + below[1])


def _below(annotation: Any) -> tuple[type[Section], str] | None:
    """The section that a key holds, in a table, a list or by itself, and how the path goes on to it."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, "."
    step = {dict: ".NAME.", tuple: "[].", UnionType: "."}.get(get_origin(annotation))
    found = [below[0] for inner in get_args(annotation) if (below := _below(inner)) is not None]
    return (found[0], step) if found and step else None


def _default_text(required: bool, default: Any) -> str:  # noqa: FBT001 - one caller, one line away
    if required:
        return "required"
    if default is None:
        return ""
    if isinstance(default, SecretStr | Secret):
        default = default.get_secret_value()
    if isinstance(default, tuple):
        return "`[]`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
