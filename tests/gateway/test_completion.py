"""Commands completed by the shells themselves, after `tidegate --install-completion` in a home of its own."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_S = 60


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}")
    return found


def environ(home: Path) -> dict[str, str]:
    """Of a terminal in which `tidegate` is found, and of nobody who has settings of his own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZDOTDIR"))}
    return {**kept, "PATH": path, "HOME": str(home), "TERM": "dumb"}


def ran(home: Path, shell: str, *words: str) -> str:
    done = subprocess.run(
        [shell, *words], env=environ(home), capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed(home: Path, shell: str) -> None:
    """By the shell's own process, from which it is told which shell it is: so it may not be replaced by the command's."""
    assert "completion installed" in ran(home, shell, "-c", "tidegate --install-completion; true")


def test_bash_completes_commands(tmp_path: Path):
    bash = shell("bash")
    installed(tmp_path, bash)
    script = "source ~/.bashrc; COMP_WORDS=(tidegate nodes dr); COMP_CWORD=2; _tidegate_completion tidegate"
    assert ran(tmp_path, bash, "-c", f"{script}; echo ${{COMPREPLY[@]}}").split() == ["drain"]


def test_fish_completes_commands_and_files(tmp_path: Path):
    fish = shell("fish")
    installed(tmp_path, fish)
    (tmp_path / "tides.yaml").touch()
    assert ran(tmp_path, fish, "-c", "complete -C 'tidegate nodes dr'").split("\t")[0] == "drain"
    file = f"{tmp_path}/tides.yaml"
    assert ran(tmp_path, fish, "-c", f"complete -C 'tidegate check {file[:-5]}'").split() == [file]


def test_zsh_completes_commands(tmp_path: Path):
    zsh = shell("zsh")
    installed(tmp_path, zsh)
    ours, its = pty.openpty()
    shown, ends_s = b"", time.monotonic() + LIMIT_S
    with subprocess.Popen(
        [zsh, "-i"], env=environ(tmp_path), stdin=its, stdout=its, stderr=its, start_new_session=True
    ) as process:
        try:
            os.write(ours, b"tidegate nodes dr")
            # The first time, it may do no more than to read in how.
            while b"tidegate nodes drain" not in shown:
                assert time.monotonic() < ends_s, shown
                os.write(ours, b"\t")
                while select.select([ours], [], [], 1)[0]:
                    shown += os.read(ours, 65536)
        finally:
            process.kill()
            os.close(its)
            os.close(ours)
