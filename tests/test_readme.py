"""The READMEs say what the program does: whatever a user can set, meet or read is in one of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import typer
from readme_tables import PAGES, ROOT, with_tables

from gateway.cli import app
from gateway.config import load
from gateway.config_reference import config_reference
from gateway.errors import ERRORS
from gateway.openai import PATHS, Routing

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = {path: path.read_text() for path in PAGES}
FRONT = TEXTS[ROOT / "README.md"]
TEXT = "\n".join(TEXTS.values())
GATEWAY = "".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py"))


def test_the_tables_are_up_to_date():
    assert with_tables(TEXTS) == TEXTS, "python tests/readme_tables.py --write"


@pytest.mark.parametrize("key", re.findall(r"^\| `([^`]+)`", config_reference(), re.MULTILINE))
def test_every_key_of_the_configuration_is_there(key: str):
    assert f"| `{key}` |" in TEXT


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_is_there(code: str):
    assert f"| `{code}` |" in TEXT


@pytest.mark.parametrize("header", sorted(set(re.findall(r'"(x-tidegate-[a-z-]+[a-z])"', GATEWAY))))
def test_every_header_of_a_reply_is_there(header: str):
    assert f"| `{header}` |" in TEXT


@pytest.mark.parametrize("name", sorted(set(re.findall(r'"(tidegate_[a-z_]+)"', GATEWAY))))
def test_every_metric_is_there(name: str):
    assert f"| `{name}` |" in TEXT


@pytest.mark.parametrize("field", Routing.__struct_fields__)
def test_every_demand_that_a_call_can_make_is_there(field: str):
    assert f"`{field}" in TEXT


@pytest.mark.parametrize("path", [path.decode() for path in PATHS])
def test_every_path_is_there(path: str):
    assert f"{path}`" in TEXT


def test_the_example_of_a_configuration_is_valid(tmp_path: Path):
    example = tmp_path / "tidegate.yaml"
    example.write_text(re.search(r"```yaml\n(.+?)```", FRONT, re.DOTALL)[1])
    config = load(example, {"EXAMPLE_API_KEY": "made-up"})
    assert len(config.endpoints_of("llama-3.1-8b")) == 2


def test_the_example_in_python_is_valid():
    compile(re.search(r"```python\n(.+?)```", FRONT, re.DOTALL)[1], "README.md", "exec")


def commands(group: typer.core.TyperGroup, prefix: str):
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        yield from commands(command, f"{prefix} {name}") if below else [f"{prefix} {name}"]


@pytest.mark.parametrize("command", list(commands(typer.main.get_command(app), "tidegate")))
def test_every_command_is_there(command: str):
    assert f"| `{command}" in TEXT


LINKS = [
    pytest.param(path, target, id=f"{path.parent.name}-{target}")
    for path, text in TEXTS.items()
    for target in sorted(set(re.findall(r"\]\(([^)\s]+)\)", text)))
    if not target.startswith("https://")
]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_every_link_leads_somewhere(page: Path, target: str):
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    assert path.is_file()
    if anchor:
        titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_front_page_leads_to_all_others():
    assert all(f"({path.parent.name}/README.md" in FRONT for path in PAGES[1:])


def test_the_picture_is_one_and_is_drawn_for_dark_pages_too():
    picture = (ROOT / ".readme" / "arrows.svg").read_text()
    assert picture.startswith("<svg ")
    assert "prefers-color-scheme: dark" in picture


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_each_of_the_two_commands_is_one_line(name: str):
    block = re.search(rf"<!-- {name} -->\n```sh\n(.+)\n```\n<!-- /{name} -->", FRONT)
    assert block
    assert "pip install -q -r requirements.lock" in block[1]
