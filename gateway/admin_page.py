"""The administration's description as a page to read: OpenAPI's document as plain HTML.

The usual viewers are scripts of a megabyte and more, and FastAPI's page loads them from somebody else's servers: on a
machine without a way out it stays empty, and with one it runs strangers' code where the master key is typed in. This page
has no script and names no other host. Whoever wants to try calls from a form has the document itself.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Schema = Mapping[str, Any]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The page's Content-Security-Policy: a browser is to load nothing for it."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark; }
h2 { margin-top: 2.5rem; font-size: 1.1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { padding: .75rem; border: 1px solid #8888; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #8884; }
"""
_INTRODUCTION = """
All routes take an admin key or `auth.master_key` as `Authorization: Bearer KEY`, or no key where calls need none and come
from this machine.
Errors have the shape `{"error": {"message", "type", "param", "code"}}`."""
_CODE = re.compile(r"`([^`]+)`")


def page(document: Schema, address: str) -> str:
    """`document`, of OpenAPI, as HTML; `address` is where it is to be had itself."""
    info = document["info"]
    routes = [
        (method, path, route)
        for path, routes in document["paths"].items()
        for method, route in routes.items()
    ]
    schemas = document.get("components", {}).get("schemas", {})
    title = escape(f"{info['title']} {info['version']}: administration")
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
        f"<h1>{title}</h1><p>{_words(_INTRODUCTION)}</p>",
        f"<p>As a document of OpenAPI: <a href={_quoted(address)}>{escape(address)}</a>.</p>",
        _listed(
            f"<a href={_quoted('#' + _anchor(method, path))}><code>{method.upper()} {escape(path)}</code></a>"
            for method, path, _ in routes
        ),
        *(_route(method, path, route) for method, path, route in routes),
        *(
            f"<h2 id={_quoted('schema-' + name)}><code>{escape(name)}</code></h2>{_schema(schema)}"
            for name, schema in schemas.items()
            if name not in _OF_FASTAPI
        ),
    ]
    return "\n".join(parts)


_OF_FASTAPI = {"HTTPValidationError", "ValidationError"}
"""The shape of errors that it describes by itself, and that ours do not have."""


def _route(method: str, path: str, route: Schema) -> str:
    parts = [f"<h2 id={_quoted(_anchor(method, path))}><code>{method.upper()} {escape(path)}</code></h2>"]
    parts.append(_text(route.get("description", "")))
    if route.get("parameters"):
        rows = ((each["name"], each["schema"], each.get("required")) for each in route["parameters"])
        parts.append(_table(rows))
    body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        parts.append(f"<p>Body:</p>{_schema(body)}")
    for status, reply in route["responses"].items():
        if status.startswith("2"):
            schema = reply.get("content", {}).get("application/json", {}).get("schema")
            parts.append(f"<p>Answer: {status}{'' if schema is None else ', ' + _type(schema)}</p>")
    return "".join(parts)


def _schema(schema: Schema) -> str:
    if "properties" not in schema:
        return f"<p>{_type(schema)}</p>"
    required = schema.get("required", ())
    rows = ((name, each, name in required) for name, each in schema["properties"].items())
    example = schema.get("example")
    shown = "" if example is None else f"<pre>{escape(json.dumps(example, indent=2))}</pre>"
    return _text(schema.get("description", "")) + _table(rows) + shown


def _table(rows: Iterable[tuple[str, Schema, Any]]) -> str:
    lines = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_type(schema)}</td>"
        f"<td>{'' if required else 'optional'}</td><td>{_words(schema.get('description', ''))}</td></tr>"
        for name, schema, required in rows
    )
    return f"<table><tr><th>Field</th><th>Type</th><th></th><th>Meaning</th></tr>{lines}</table>"


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href={_quoted('#schema-' + name)}><code>{escape(name)}</code></a>"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        return f"object of {_type(values)}"
    return escape(schema.get("type", ""))


def _anchor(method: str, path: str) -> str:
    return f"{method}{path}"


def _listed(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _text(text: str) -> str:
    return "".join(f"<p>{_words(part)}</p>" for part in text.split("\n\n") if part)


def _words(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _quoted(value: str) -> str:
    return f'"{escape(value)}"'
