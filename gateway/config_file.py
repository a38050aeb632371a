"""From the text of a YAML file to plain values, with everything that is wrong with it named by its path.

PyYAML only parses here; turning its nodes into values is done in this file, for three reasons. Prices must never
pass through a float, so that a number with a fraction becomes a Decimal of its text. The environment comes in after
the structure is known, so that no value can add a key. And a key that stands twice is an error rather than a
silent choice. What plain scalars mean follows YAML 1.2: `no` is a word, as in `region: no`.
"""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping


Stamp = tuple[int, int, int]
"""What is another one when a file is."""


def stamp_of(path: Path) -> Stamp | None:
    """Of the file, or what a link leads to; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - what pathlib does, without its objects every second
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


class Problem(NamedTuple):
    """One thing that is wrong, and where."""

    path: str
    """As in the file: `models.llama.endpoints[1].worker`; empty for the file as a whole."""
    message: str


class ConfigError(Exception):
    """The configuration cannot be used. Carries every problem found, not only the first."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(f"{p.path}: {p.message}" if p.path else p.message for p in problems))
        self.problems = problems


def path_of(keys: tuple[str | int, ...]) -> str:
    """`("endpoints", 1, "worker")` as `endpoints[1].worker`."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return path.removeprefix(".")


OPEN, CLOSE = "\ue000", "\ue001"
"""Stand for the braces of `${NAME}` while PyYAML parses: in a flow mapping, as in `{master_key: ${KEY}}`, it would
take them for its own. They are as long as what they stand for, so that lines and columns stay right."""

REFERENCE = re.compile(r"(?<!\$)\$\{([^{}\n]*)\}")
MARKED = re.compile(f"\\${OPEN}([^{CLOSE}]*){CLOSE}")
NAME_AND_DEFAULT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?")
PLAIN = "plain"  # the tag of unquoted scalars
NULL = re.compile(r"~|null|Null|NULL|")
BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+")
FRACTION = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
LONGEST_NUMBER = 100
"""Digits; what is longer stays text, which no number field takes (Python refuses to convert numbers of 4,301)."""

FILE = "file:"
"""What a value begins with that stands in a file of its own, as secrets do: `file:/run/secrets/openai`."""
LONGEST_SECRET = 65_536
"""Bytes of such a file."""

QUOTED = re.compile(r"'(?!<)[^']{2,}'")
"""In a message of PyYAML: a piece of the file, which may be of a secret (a password that starts with `*`)."""


class Reader:
    """Turns one document's nodes into values, noting problems on the way."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self.files: dict[Path, Stamp | None] = {}
        """Those that values came from, as they were just before they were read."""
        self._environ = environ
        self._open: set[int] = set()
        self._done: dict[int, Any] = {}

    def value(self, node: yaml.Node, keys: tuple[str | int, ...]) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        if node.tag not in {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}:
            return self._wrong(keys, "YAML tags (!...) are not supported")
        if id(node) in self._open:
            return self._wrong(keys, "an anchor's value cannot contain itself")
        if (
            id(node) not in self._done
        ):  # an alias is the same node again: one value serves, however often it is used
            self._open.add(id(node))
            self._done[id(node)] = (
                self._mapping(node, keys)
                if isinstance(node, yaml.MappingNode)
                else [self.value(item, (*keys, index)) for index, item in enumerate(node.value)]
            )
            self._open.remove(id(node))
        return self._done[id(node)]

    def _mapping(self, node: yaml.MappingNode, keys: tuple[str | int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            at = f"(line {key_node.start_mark.line + 1})"
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong(keys, f"a key must be text {at}")
                continue
            key = key_node.value.replace(OPEN, "{").replace(CLOSE, "}")
            if key in result:
                self._wrong((*keys, key), f"the key stands here a second time {at}")
                continue
            result[key] = self.value(value_node, (*keys, key))
        return result

    def _scalar(self, node: yaml.ScalarNode, keys: tuple[str | int, ...]) -> Any:
        value = self._said(node, keys)
        # As it is written: what comes from the environment is a value, whatever it begins with.
        if isinstance(value, str) and node.value.startswith(FILE):
            return self._content(Path(value.removeprefix(FILE)), keys)
        return value

    def _said(self, node: yaml.ScalarNode, keys: tuple[str | int, ...]) -> Any:
        text: str = node.value
        if OPEN in text:
            return self._interpolated(text, keys)
        if node.tag == PLAIN:
            return plain(text)
        if node.tag != "tag:yaml.org,2002:str":
            return self._wrong(keys, "YAML tags (!...) are not supported")
        return text.replace("$${", "${")

    def _interpolated(self, text: str, keys: tuple[str | int, ...]) -> str | None:
        """The text with the environment's values in it; always text, which number fields take as a number."""
        if MARKED.fullmatch(text) and text.endswith(f":-{CLOSE}") and not self._look_up(text[2:-1], keys):
            return None  # `${NAME:-}`: nothing, said on purpose
        parts = MARKED.split(text)
        for index in range(1, len(parts), 2):
            parts[index] = self._look_up(parts[index], keys)
        for index in range(0, len(parts), 2):
            parts[index] = parts[index].replace("$${", "${").replace(OPEN, "{").replace(CLOSE, "}")
        return "".join(parts)

    def _look_up(self, reference: str, keys: tuple[str | int, ...]) -> str:
        parsed = NAME_AND_DEFAULT.fullmatch(reference)
        if parsed is None:
            self._wrong(keys, "${...} takes a name, or a name and a default as in ${NAME:-default}")
            return ""
        name, default = parsed.groups()
        if default is not None:
            return self._environ.get(name) or default  # as in a shell, an empty value takes the default too
        if name not in self._environ:
            self._wrong(keys, f"the environment has no {name}")
            return ""
        return self._environ[name]

    def _content(self, path: Path, keys: tuple[str | int, ...]) -> str | None:
        """What stands in the file, without the line break that editors put at its end."""
        self.files[path] = stamp_of(path)
        text, problem = "", ""
        try:
            with path.open("rb") as file:
                content = file.read(LONGEST_SECRET + 1)
            text = content.decode().rstrip("\r\n")
            if len(content) > LONGEST_SECRET:
                problem = f"{path} has more than {LONGEST_SECRET} bytes"
            elif not text:
                problem = f"{path} is empty"
        except OSError as error:
            problem = f"{path} cannot be read: {error.strerror}"
        except UnicodeDecodeError:
            problem = f"{path} is no UTF-8 text"
        except ValueError:
            problem = "file: takes the path of a file"
        if problem:
            self._wrong(keys, problem)
            return None
        return text

    def _wrong(self, keys: tuple[str | int, ...], message: str) -> None:
        self.problems.append(Problem(path_of(keys), message))


def plain(text: str) -> Any:
    """What an unquoted scalar means."""
    if NULL.fullmatch(text):
        return None
    if BOOLEAN.fullmatch(text):
        return text.lower() == "true"
    if len(text) <= LONGEST_NUMBER:
        if INTEGER.fullmatch(text):
            return int(text)
        if FRACTION.fullmatch(text):
            return Decimal(text)
    return text.replace("$${", "${")


class _PlainLoader(yaml.SafeLoader):
    """Resolves no plain scalar to a type: all of them get the one tag that sends them to `plain`."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call, no-any-return]


def read(
    text: str, environ: Mapping[str, str], files: dict[Path, Stamp | None] | None = None
) -> tuple[dict[str, Any], list[Problem]]:
    """The values of a YAML document and what is wrong with it. `files` then has those that values came from.

    Raises ConfigError where there is no mapping to speak of.
    """
    if OPEN in text or CLOSE in text:
        raise ConfigError((Problem("", "the characters U+E000 and U+E001 cannot be used here"),))
    try:
        root = yaml.compose(REFERENCE.sub(rf"${OPEN}\1{CLOSE}", text), _PlainLoader)
    except yaml.MarkedYAMLError as error:
        # From None, here and below: what PyYAML raises quotes the file.
        raise ConfigError((Problem("", f"not valid YAML: {_where(error)}"),)) from None
    except yaml.YAMLError as error:
        first_line = str(error).partition("\n")[0]
        raise ConfigError((Problem("", f"not valid YAML: {first_line}"),)) from None
    except RecursionError:
        raise ConfigError((Problem("", "nested too deeply"),)) from None
    if root is None:
        raise ConfigError((Problem("", "the file is empty"),))
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError((Problem("", "should be a mapping of keys such as `listen` and `models`"),))
    reader = Reader(environ)
    values = reader.value(root, ())
    if files is not None:
        files.clear()
        files.update(reader.files)
    return values, reader.problems


def _where(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    problem = QUOTED.sub("'...'", error.problem or error.context or "cannot be parsed")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
