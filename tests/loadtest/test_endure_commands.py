"""Benches without what only one of them takes."""

import subprocess
import sys

WITHOUT_PSYCOPG = "import sys; sys.modules['psycopg'] = None; from loadtest.cli import main; main()"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_PSYCOPG, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_postgresqls_driver_the_other_commands_work_and_endure_says_what_it_takes():
    assert run("chaos", "--help").returncode == 0
    endure = run("endure")
    assert (endure.returncode, endure.stderr) == (
        1,
        "it takes PostgreSQL's driver: pip install 'tidegate[postgres]'\n",
    )
