"""The rules that no type checker holds: import arrows, no module state, no error swallowed, a light import, sizes."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("routing", "backends", "gateway", "loadtest")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in FILES}

FILE_LINES = 400
FUNCTION_LINES = 50

BROAD_EXCEPTS = {
    "backends/sweep.py:Sweep._run": "without the sweep, every call of the process would be without deadlines",
    "backends/rounds.py:_repeat": "a worker must go on being checked after whatever happened in one round",
    "gateway/auth.py:follow": "calls are admitted by the keys read last, and revoked ones must be seen later",
    "gateway/http.py:Edge.__call__": "the edge: a defect becomes a 500 in OpenAI's shape and a line in the log",
    "gateway/limit_accounts.py:Accounts.run": "what is on lease must go back after whatever happened in one round",
    "gateway/mover.py:_pass": "rows must go on to the database after whatever happened in one pass",
    "loadtest/simworker/routes.py:Routes.answer": "the simulated worker's edge",
}
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "loadtest/commands.py:bench": "a command's options are its parameters",
    "loadtest/commands.py:run": "as above",
    "loadtest/simworker/command.py:worker": "as above",
}

HEAVY = {"alembic", "fastapi", "pydantic", "rich", "sqlalchemy", "starlette", "typer", "yaml"}
NEVER_AT_IMPORT = {"litellm", "vllm", "zmq"}


def functions(tree: ast.Module):
    """Every function with its dotted name."""

    def below(node: ast.AST, prefix: str):
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            name = f"{prefix}{child.name}." if named else prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name[:-1], child
            yield from below(child, name)

    return below(tree, "")


def test_imports_go_one_way_only():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TREES)
def test_a_module_keeps_no_state(path: str):
    for node in ast.walk(TREES[path]):
        assert not isinstance(node, ast.Global), f"{path}:{node.lineno}: global"
    for node in TREES[path].body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if is_mutable(node.value):
                # A table in capitals is a constant by agreement; the next test looks after it.
                assert all(name.lstrip("_").isupper() or name == "__all__" for name in names), (
                    f"{path}:{node.lineno}: {', '.join(names)}"
                )


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        made = ast.unparse(value.func).rpartition(".")[2]
        return made in {"list", "dict", "set", "deque", "defaultdict", "Counter", "OrderedDict", "ContextVar"}
    return isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


CHANGING_CALLS = {
    *("append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "clear", "remove"),
    "discard",
}


@pytest.mark.parametrize("path", TREES)
def test_a_table_of_a_module_is_never_changed(path: str):
    tables = {
        target.id
        for node in TREES[path].body
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_mutable(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(TREES[path]):
        changed = None
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in CHANGING_CALLS
        ):
            changed = node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            changed = node.value
        if isinstance(changed, ast.Name):
            assert changed.id not in tables, f"{path}:{node.lineno}: changes {changed.id}"


def test_errors_are_swallowed_nowhere_but_in_the_places_listed():
    found = set()
    for path, tree in TREES.items():
        for name, function in functions(tree):
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler) and is_broad(node.type) and not ends_in_raise(node):
                    found.add(f"{path}:{name}")
    assert found == set(BROAD_EXCEPTS)


def is_broad(caught: ast.expr | None) -> bool:
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(kind is None or ast.unparse(kind) in {"Exception", "BaseException"} for kind in kinds)


def ends_in_raise(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None


def test_importing_the_gateway_loads_nothing_heavy():
    assert loaded_by("import gateway, routing") & (HEAVY | NEVER_AT_IMPORT) == set()


def test_serving_without_traces_does_not_load_what_makes_them():
    # fastapi loads its API wherever that is installed, which is light.
    loaded_by("import gateway.app, sys; assert 'opentelemetry.sdk' not in sys.modules")


def test_the_command_line_starts_without_what_only_some_commands_need():
    assert loaded_by("import gateway.cli") & (HEAVY | NEVER_AT_IMPORT) <= {"rich", "typer", "yaml"}


def test_what_only_some_need_is_not_imported_with_the_rest():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
    modules = [m for m in modules if not m.endswith("__main__") and ".migrations." not in m]
    assert loaded_by(f"import {', '.join(modules)}") & NEVER_AT_IMPORT == set()


def loaded_by(statement: str) -> set[str]:
    """The packages that are loaded after it, in a fresh interpreter."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_long_files_are_listed_with_a_reason():
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in TREES}
    assert {path for path, count in lines.items() if count > FILE_LINES} <= set(LONG_FILES)


def test_long_functions_are_listed_with_a_reason():
    found = {
        f"{path}:{name}"
        for path, tree in TREES.items()
        for name, function in functions(tree)
        if function.end_lineno - function.lineno >= FUNCTION_LINES
    }
    assert found <= set(LONG_FUNCTIONS)


def test_every_exception_to_a_rule_has_its_reason():
    assert all({**BROAD_EXCEPTS, **LONG_FILES, **LONG_FUNCTIONS}.values())


LOCKS = {"requirements.lock": ["dev"], "requirements-litellm.lock": ["dev", "litellm"]}
"""The extras that each holds."""
each_lock = pytest.mark.parametrize("lock", LOCKS)


def locked(lock: str) -> dict[str, str]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


@each_lock
def test_the_lock_has_everything_that_pyproject_asks_for(lock: str):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in LOCKS[lock] for line in extras[extra])]
    wanted = [Requirement(line) for line in lines]
    pins = locked(lock)
    missing = [str(each) for each in wanted if pins.get(canonicalize_name(each.name)) not in each.specifier]
    assert missing == []
    assert pins.keys() & NEVER_AT_IMPORT == NEVER_AT_IMPORT & set(LOCKS[lock])


def test_both_locks_hold_the_same_but_for_the_openai_client():
    plain, with_litellm = map(locked, LOCKS)
    assert {name for name, version in plain.items() if with_litellm[name] != version} == {"openai"}


@each_lock
def test_the_lock_is_hashed_throughout_and_names_no_place_to_download_from(lock: str):
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|^\s*(-i|-f|-e|--(extra-)?index|--find)|file:|^/", text, re.MULTILINE)
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)[1:]
    assert len(entries) == len(locked(lock))
    for entry in entries:
        assert "--hash=sha256:" in entry, entry
        marker = re.match(r"[^\\\n]+?;([^\\\n]+)", entry)
        if marker:
            Marker(marker[1].strip())  # raises where pip could not read it
