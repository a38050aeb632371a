from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import typer

from gateway.cli import app

VALID = """
auth: {master_key: ${MASTER}}
database: postgresql://tide:${MASTER}@db.internal/tidegate
models:
  llama:
    aliases: [gpt-4o-mini]
    price: {input: 0.05, output: 0.10}
    endpoints:
      - {worker: 'http://10.0.0.5:8000', gpu: rtx-4090, region: eu-west, cost: {input: 0.02, output: 0.04}}
      - {openai: 'https://api.example.com/v1', api_key: '${MASTER}'}
aliases: {smart: {default: llama, flex: llama, fallbacks: [llama]}}
tenants: {acme: {policy: {tiers: [flex], max_price: {input: 0.05}}}, zeta: }
"""
INVALID = """
listen: {prot: 1}
models:
  llama:
    price: {input: -1, output: 0.10}
    endpoints: [{worker: 'http://h'}, {worker: 'http://h:1/v1'}]
"""


def tidegate(*arguments: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", *arguments]
    environment = {**os.environ, "COLUMNS": "120", **environ}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def valid(tmp_path: Path) -> str:
    path = tmp_path / "valid.yaml"
    path.write_text(VALID)
    return str(path)


@pytest.fixture
def invalid(tmp_path: Path) -> str:
    path = tmp_path / "invalid.yaml"
    path.write_text(INVALID)
    return str(path)


def test_help_names_every_command():
    shown = tidegate("--help")
    assert shown.returncode == 0
    for command in ("serve", "check", "demo", "loadtest", "keys", "usage"):
        assert command in shown.stdout


def test_the_installed_command_knows_its_version():
    command = Path(sys.executable).with_name("tidegate")
    installed = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert installed.stdout.startswith("tidegate 0.")
    assert tidegate("--version").stdout == installed.stdout


def test_importing_the_gateway_is_fast():
    program = "import time; start = time.perf_counter(); import gateway; print(time.perf_counter() - start)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(shown.stdout) < 0.3


def test_check_prints_every_error_on_a_line_of_its_own_and_exits_with_2(invalid: str):
    shown = tidegate("check", invalid)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.splitlines() == [
        "listen.prot: unknown key; did you mean port?",
        "models.llama.price.input: should be greater than or equal to 0",
        "models.llama.endpoints[1].worker: should be the worker's root: leave out the path (such as /v1)",
    ]


def test_check_prints_errors_as_json_when_asked(invalid: str):
    shown = tidegate("check", invalid, "--format", "json")
    answer = json.loads(shown.stdout)
    assert (shown.returncode, shown.stderr, answer["valid"]) == (2, "", False)
    assert answer["errors"][0] == {"path": "listen.prot", "message": "unknown key; did you mean port?"}
    assert len(answer["errors"]) == 3


def test_check_of_a_valid_file_prints_what_it_says_with_secrets_masked(valid: str):
    shown = tidegate("check", valid, MASTER="hunter2")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "hunter2" not in shown.stdout
    assert "postgresql://db.internal/tidegate" in shown.stdout
    assert "llama: input 0.05, output 0.10 USD per million tokens (also gpt-4o-mini)" in shown.stdout
    assert (
        "10.0.0.5:8000, http://10.0.0.5:8000, trust community, region eu-west, gpu rtx-4090" in shown.stdout
    )
    assert "api_key ****" in shown.stdout
    assert "priority: aims at 1000 ms" in shown.stdout
    assert "smart: llama; flex llama; then llama\n" in shown.stdout
    assert "acme: tiers flex; input up to 0.05\n" in shown.stdout
    assert "zeta: unbounded\n" in shown.stdout
    assert shown.stdout.endswith("valid.yaml is valid\n")


def test_check_prints_the_whole_configuration_as_json_with_secrets_masked(valid: str):
    shown = tidegate("check", valid, "--format", "json", MASTER="hunter2")
    config = json.loads(shown.stdout)["config"]
    assert "hunter2" not in shown.stdout
    assert config["database"] == "postgresql://db.internal/tidegate"
    assert config["models"]["llama"]["price"]["output"] == "0.10"


@pytest.mark.parametrize("command", [["check"], ["serve", "--config"]])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("a: [", "not valid YAML: line 1, column 5"),
        ("", "the file is empty"),
        (VALID, "auth.master_key: the environment has no MASTER"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_and_no_traceback(
    tmp_path: Path, command: list[str], text: str | None, message: str
):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    shown = tidegate(*command, str(path))
    assert (shown.returncode, shown.stdout) == (2, "")
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


def test_serve_looks_for_tidegate_yaml_where_it_is_started(tmp_path: Path):
    shown = tidegate("serve", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (2, "no such file: tidegate.yaml\n")


@pytest.mark.parametrize("workers", ["0", "some", "1000", "1.5", "-1"])
def test_serve_refuses_what_is_no_number_of_processes(valid: str, workers: str):
    shown = tidegate("serve", "--config", valid, f"--workers={workers}")
    assert shown.returncode == 2
    assert "server.workers: should be a number from 1 to 256, or auto" in shown.stderr.splitlines()


def test_serve_without_keys_on_all_addresses_is_refused_also_from_the_command_line(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(
        INVALID.replace("listen: {prot: 1}", "auth: {mode: none}").replace("-1", "1").replace("/v1", "")
    )
    shown = tidegate("serve", "--config", str(path), "--host", "0.0.0.0")
    assert shown.returncode == 2
    assert shown.stderr.startswith("auth.mode: none on listen.host 0.0.0.0 lets anyone in")


@pytest.mark.parametrize(
    ("arguments", "addition", "message"),
    [
        (["--port", "BUSY"], "", "cannot listen on 127.0.0.1:"),
        (["--host", "no.such.host.invalid"], "", "cannot listen on no.such.host.invalid:"),
        (["--port", "0"], "database: sqlite:////no/such/folder/x.db", "cannot open the database"),
        (["--port", "0"], "journal: {folder: /dev/null/journal}", "cannot use /dev/null/journal: "),
        (["--port", "0"], "decision_log: {file: /dev/null/log}", "cannot use /dev/null/log: Not a directory"),
    ],
)
def test_serve_says_in_one_line_why_it_cannot(
    tmp_path: Path, arguments: list[str], addition: str, message: str
):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"{addition}\nmodels: {{m: {{price: {{input: 1, output: 1}}, endpoints: [{{worker: 'http://127.0.0.1:9'}}]}}}}"
    )
    with socket.create_server(("127.0.0.1", 0)) as busy:
        words = [word.replace("BUSY", str(busy.getsockname()[1])) for word in arguments]
        shown = tidegate("serve", "--config", str(path), *words, cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert message in shown.stderr.splitlines()[-1]
    assert "Traceback" not in shown.stderr


TOLD = """
import sys
def tell(event, arguments):
    if event in {"subprocess.Popen", "tempfile.mkdtemp"}:
        print(event, arguments, file=sys.stderr)
sys.addaudithook(tell)
"""
"""Python that says when it starts a process or makes a temporary folder."""


def test_the_demo_on_a_busy_port_is_an_error_before_anything_starts(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(TOLD)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        shown = tidegate("demo", "--port", str(port), PYTHONPATH=paths)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == (
        f"cannot listen on 127.0.0.1:{port}: address already in use; choose another port with --port\n"
    )


def test_loadtest_passes_its_arguments_on_as_they_are():
    ours = tidegate("loadtest", "worker", "--no-such-option", "--", "x")
    theirs = subprocess.run(
        [sys.executable, "-m", "loadtest", "worker", "--no-such-option", "--", "x"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert tidegate("loadtest", "--help").stdout.lstrip().startswith("Usage: python -m loadtest")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["--version"]),
        (0, ["check", "valid.yaml"]),
        (1, ["keys", "revoke", "nobody", "--config", "valid.yaml"]),
        (1, ["keys", "list", "--url", "http://127.0.0.1:9"]),
        (1, ["doctor", "--config", "valid.yaml"]),
        (2, ["check", "missing.yaml"]),
        (2, ["doctor", "--config", "missing.yaml"]),
        (2, ["serve", "--port", "seven"]),
        (2, ["no-such-command"]),
    ],
)
def test_exit_codes_are_those_of_the_readme(tmp_path: Path, code: int, arguments: list[str]):
    endpoint = "{worker: 'http://127.0.0.1:9'}"
    text = f"listen: {{port: 0}}\nmodels: {{llama: {{price: {{input: 1, output: 1}}, endpoints: [{endpoint}]}}}}\n"
    (tmp_path / "valid.yaml").write_text(text)
    shown = tidegate(*arguments, cwd=tmp_path, PYTHONPATH=str(Path(__file__).parents[2]))
    assert shown.returncode == code, shown.stderr
    assert "Traceback" not in shown.stderr
    assert f"| {code} | " in (Path(__file__).parents[2] / "gateway" / "README.md").read_text()


def test_whatever_takes_a_format_takes_json_for_short():
    def below(group: typer.core.TyperGroup, prefix: tuple[str, ...] = ()):
        for name, command in group.commands.items():
            path = (*prefix, name)
            yield from below(command, path) if hasattr(command, "commands") else [(path, command)]

    options = {
        path: {word for parameter in command.params for word in parameter.opts}
        for path, command in below(typer.main.get_command(app))
    }
    formatted = {path for path, words in options.items() if "--format" in words}
    assert len(formatted) > 30
    assert formatted == {path for path, words in options.items() if "--json" in words}


def test_json_is_short_for_format_json_and_goes_with_no_other(valid: str):
    short = tidegate("check", valid, "--json", MASTER="hunter2")
    assert short.returncode == 0
    assert json.loads(short.stdout)["valid"]
    assert short.stdout == tidegate("check", valid, "--format", "json", MASTER="hunter2").stdout
    both = tidegate("keys", "list", "--json", "--format", "csv", "--config", valid)
    assert both.returncode == 2
    assert "--json and --format csv are two things" in both.stderr


def unread(pipe) -> int:
    """Bytes in a pipe that nobody has taken yet."""
    found = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, found)
    return int.from_bytes(found, sys.byteorder)


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_ctrl_c_before_there_is_anything_to_stop_is_130():
    # A shell that has put the tests into the background lets them ignore it; it is to be as where somebody sits.
    program = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", program, sys.executable, "-m", "gateway", "explain", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            process.stdin.write(b" " * 1_000_000)
            process.stdin.flush()
            # Python looks for signals before it waits for more, not as it begins to: it has to be waiting.
            while unread(process.stdin) or not sleeps(process.pid):
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
    assert "| 130 | " in (Path(__file__).parents[2] / "gateway" / "README.md").read_text()
