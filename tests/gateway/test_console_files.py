"""The console's files: all that is named is there, others' code is as published, and nothing comes from elsewhere."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from console_vendor import FILES, NPM, ROOT

from gateway.console.assets import Assets

if TYPE_CHECKING:
    from pathlib import Path

STATIC = ROOT / "gateway/console/static"
OURS = [path for path in sorted(STATIC.rglob("*")) if path.is_file() and path.parent.name != "vendor"]


def test_others_code_is_as_it_was_fetched():
    lines = (NPM / "SHA256SUMS").read_text().splitlines()
    named = {ROOT / line[66:]: line[:64] for line in lines}
    assert named.keys() == FILES.keys()
    assert {path: sha256(path.read_bytes()).hexdigest() for path in named} == named


def test_others_code_is_pinned_by_hashes_and_names_no_place_to_download_from():
    lock = json.loads((NPM / "package-lock.json").read_text())
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert packages
    assert all(
        each["integrity"].startswith("sha512-") and "resolved" not in each for each in packages.values()
    )
    wanted = json.loads((NPM / "package.json").read_text())
    pinned = {name.removeprefix("node_modules/"): each["version"] for name, each in packages.items()}
    assert pinned == {**wanted["dependencies"], **wanted["devDependencies"]}


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_a_file_names_no_other_host(path: Path):
    found = re.findall(r"https?://[^\s\"'`<>)]+", path.read_text())
    assert [each for each in found if each != "http://www.w3.org/2000/svg"] == []


@pytest.mark.parametrize("path", sorted(STATIC.rglob("*.js")), ids=lambda path: path.name)
def test_what_a_module_imports_is_there(path: Path):
    assets = Assets()
    for named in re.findall(r"from \"(\.[^\"]+)\"", path.read_text()):
        assert assets.find((path.parent / named).resolve().relative_to(STATIC).as_posix()), named


def test_the_page_has_no_script_and_no_style_in_it():
    page = Assets().page.content.decode()
    assert not re.search(r"<style|\bstyle=|\bon[a-z]+=|<script(?![^>]*\bsrc=)", page)
    assert page.count("{assets}") == 0
