"""An instance of a JSON schema, for replies that must obey one.

Covers what schemas of tools and of structured replies are made of: objects with all their properties, arrays,
strings, numbers within bounds, enum, const, alternatives (the first) and references within the schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

_WORDS = ("tide", "harbour", "moon", "reef", "lantern", "marée", "潮", "swell")
_DEPTH = 12


def instance(schema: Any, dice: random.Random) -> Any:
    """A value that is valid under `schema`, the same for the same dice."""
    return _instance(schema, dice, schema, 0)


def _instance(schema: Any, dice: random.Random, root: Any, depth: int) -> Any:  # noqa: PLR0911  (one per keyword)
    if not isinstance(schema, dict) or depth > _DEPTH:
        return None
    if "$ref" in schema:
        return _instance(_referenced(root, schema["$ref"]), dice, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return dice.choice(schema["enum"])
    for alternatives in ("anyOf", "oneOf", "allOf"):
        if schema.get(alternatives):
            return _instance(schema[alternatives][0], dice, root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _instance(part, dice, root, depth + 1) for name, part in properties.items()}
    if kind == "array":
        least, most = schema.get("minItems", 1), schema.get("maxItems", 3)
        return [
            _instance(schema.get("items"), dice, root, depth + 1) for _ in range(max(least, min(2, most)))
        ]
    return _scalar(kind, schema, dice)


def _scalar(kind: str, schema: dict[str, Any], dice: random.Random) -> Any:
    match kind:
        case "integer" | "number":
            step = 1 if kind == "integer" else 0.5
            least = schema.get(
                "minimum", schema.get("exclusiveMinimum", schema.get("maximum", 100) - 100) + step
            )
            most = schema.get("maximum", schema.get("exclusiveMaximum", least + 100 + step) - step)
            return (
                dice.randint(int(least), int(most))
                if kind == "integer"
                else round(dice.uniform(least, most), 3)
            )
        case "boolean":
            return dice.random() < 0.5
        case "null":
            return None
        case _:
            text = " ".join(dice.choice(_WORDS) for _ in range(2))
            return text.ljust(schema.get("minLength", 0), "~")[: schema.get("maxLength")]


def _referenced(root: Any, reference: str) -> Any:
    found = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step, {}) if step and isinstance(found, dict) else found
    return found
