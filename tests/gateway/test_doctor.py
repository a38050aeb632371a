from __future__ import annotations

import json
import socket
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.testing import CliRunner

from gateway.cli import app
from gateway.journal import Segment
from gateway.store import Store

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "hunter2-hunter2-hunter2"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def doctor(folder: Path, **sections: Any) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """Exit code, and what is found of each thing."""
    model = {"price": {"input": 1, "output": 2}, "endpoints": []}
    config = {"listen": {"port": 0}, "auth": {"master_key": SECRET}, "models": {"llama": model}, **sections}
    (folder / "tidegate.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(app, ["doctor", "--format", "json"], catch_exceptions=False)
    assert "hunter2" not in done.output
    answer = json.loads(done.stdout)
    findings: dict[str, list[tuple[str, str]]] = {}
    for each in answer["findings"]:
        assert bool(each["advice"]) == (each["level"] != "ok")
        findings.setdefault(each["about"], []).append((each["level"], each["found"]))
    assert answer["healthy"] == (done.exit_code == 0)
    return done.exit_code, findings


def test_a_configuration_that_is_fine_is_healthy_and_nothing_is_made(folder: Path):
    code, found = doctor(folder)
    assert code == 0
    assert {level for findings in found.values() for level, _ in findings} <= {"ok", "warning"}
    assert found["database"] == [("ok", f"there is no {folder}/tidegate.db yet; the gateway makes it")]
    assert [path.name for path in folder.iterdir()] == ["tidegate.yaml"]


def test_a_file_that_is_not_valid_ends_with_2_and_every_problem(folder: Path):
    (folder / "tidegate.yaml").write_text("listen: {prot: 1}\nmodels: {}\n")
    done = CliRunner().invoke(app, ["doctor", "--format", "json"])
    assert done.exit_code == 2
    assert [each["about"] for each in json.loads(done.stdout)["findings"]] == ["listen.prot", "models"]


def test_what_is_found_reads_as_lines_with_advice_below(folder: Path):
    (folder / "tidegate.yaml").write_text(
        "listen: {port: 0}\nauth: {master_key: short}\nmodels: {llama: {price: {input: 1, output: 1}, endpoints: []}}\n"
    )
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("warning  auth.master_key"))
    assert lines[at + 1].strip().startswith("-> make one by: ")
    assert lines[-1] == "no errors, 1 warning"


def test_a_database_is_neither_made_up_to_date_nor_written(folder: Path):
    file = folder / "old.db"
    with Store.open(f"sqlite:///{file}"):
        pass
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    code, found = doctor(folder, database="sqlite:///old.db")
    assert code == 0
    assert found["database"][0][0] == "warning"
    assert "has schema 0001, and this version" in found["database"][0][1]
    with closing(sqlite3.connect(file)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert not any(name.startswith("tidegate_doctor") for name in tables)
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)


def test_a_database_of_a_newer_version_is_an_error(folder: Path):
    with Store.open("sqlite:///new.db"):
        pass
    with closing(sqlite3.connect(folder / "new.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    code, found = doctor(folder, database="sqlite:///new.db")
    assert code == 1
    assert "this version knows up to" in found["database"][0][1]


def test_a_file_that_is_no_database_is_an_error(folder: Path):
    (folder / "no.db").write_text("certainly no database, however long one looks at it" * 100)
    code, found = doctor(folder, database="sqlite:///no.db")
    assert (code, found["database"]) == (
        1,
        [("error", "sqlite:///no.db cannot be used: file is not a database")],
    )


def test_a_database_is_asked_for_its_schema_and_its_clock(folder: Path, postgresql_url: str):
    code, found = doctor(folder, database=postgresql_url)
    assert code == 0
    assert [level for level, _ in found["database"]] == ["ok", "ok"]
    assert found["database"][1][1] == "its clock agrees with ours"


def test_a_database_that_does_not_let_us_write_is_an_error(folder: Path, postgresql_url: str):
    read_only = f"{postgresql_url}&options=-c%20default_transaction_read_only%3Don"
    code, found = doctor(folder, database=read_only)
    assert code == 1
    assert "in a read-only transaction" in found["database"][-1][1]


def test_a_database_server_that_is_not_there_is_an_error_without_its_password(folder: Path):
    code, found = doctor(folder, database=f"postgresql://tide:{SECRET}@127.0.0.1:{free_port()}/tidegate")
    assert code == 1
    assert found["database"][0][1].startswith("postgresql://127.0.0.1:")


def test_redis_is_asked_whether_it_takes_writes(folder: Path, redis: Any):
    code, found = doctor(folder, shared_state=redis.url)
    assert code == 0
    assert [level for level, _ in found["shared_state"]] == ["ok", "ok"]
    with redis.client() as client:
        assert client.keys("*doctor*") == []


def test_redis_behind_sentinels_and_in_a_cluster_is_asked_at_its_primary(
    folder: Path, sentinels: Any, redis_cluster: Any
):
    for fleet in (sentinels, redis_cluster):
        code, found = doctor(folder, shared_state=fleet.url)
        assert (code, [level for level, _ in found["shared_state"]]) == (0, ["ok", "ok"])
        assert "high-water" not in str(found)
        assert "low-water" not in str(found)


def test_a_redis_that_forgets_when_it_is_full_is_worth_a_warning(folder: Path, redis: Any):
    with redis.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            code, found = doctor(folder, shared_state=redis.url)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "0")
    assert code == 0
    assert "it forgets keys (allkeys-lru)" in found["shared_state"][-1][1]


def test_redis_that_is_not_there_or_refuses_the_password_is_an_error(folder: Path, redis: Any):
    code, found = doctor(folder, shared_state=f"redis://:{SECRET}@127.0.0.1:{free_port()}/0")
    assert (code, found["shared_state"][0][0]) == (1, "error")
    code, found = doctor(folder, shared_state=f"redis://someone:{SECRET}@127.0.0.1:{redis.port}/0")
    assert code == 1
    assert found["shared_state"][0][1].endswith("does not let us in")


def test_a_port_that_another_program_has_is_an_error(folder: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, found = doctor(folder, listen={"port": port})
    assert (code, found["listen"]) == (1, [("error", f"another program listens on 127.0.0.1:{port}")])


def test_the_address_of_administration_is_looked_at_as_well(folder: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, found = doctor(folder, admin={"listen": {"port": port}})
    said = ("error", f"another program listens on 127.0.0.1:{port}")
    assert (code, found["listen"][0][0], found["admin.listen"]) == (1, "ok", [said])


def test_what_dead_gateways_have_left_is_told_apart_from_what_is_in_use(folder: Path):
    journal = folder / "tidegate-journal"
    journal.mkdir()
    dead = Segment.create(journal)
    dead.write(b"{}\n")
    dead.release()
    alive = Segment.create(journal)
    (journal / "x.corrupt").write_text("{}")
    code, found = doctor(folder)
    assert code == 0
    assert ("warning", "1 files of gateways that have died wait in tidegate-journal, 3 bytes") in found[
        "journal"
    ]
    assert ("warning", "what the database would not take is in x.corrupt") in found["journal"]
    dead.path.unlink()
    alive.release()


def test_a_journal_that_cannot_be_made_is_an_error(folder: Path):
    (folder / "file").write_text("")
    code, found = doctor(folder, journal={"folder": "file/journal"})
    assert (code, found["journal"][0][0]) == (1, "error")


def test_what_serving_costs_is_compared_with_what_is_charged(folder: Path):
    port = free_port()
    endpoints = [
        {"worker": f"http://127.0.0.1:{port}", "name": "dear", "cost": {"input": 5, "output": 5}},
        {"openai": f"http://127.0.0.1:{port}/v1", "name": "unknown", "api_key": SECRET},
    ]
    model = {"price": {"input": 1, "output": 2}, "endpoints": endpoints}
    code, found = doctor(folder, models={"llama": model})
    assert code == 1
    assert ("warning", "serving there costs more than the model's price") in found["llama at dear"]
    assert ("warning", "what it costs us is not known") in found["llama at unknown"]
    assert found["llama at dear"][0][1].startswith("nothing accepts connections")


def test_fewer_open_files_than_connections_are_worth_a_warning(folder: Path):
    code, found = doctor(folder, limits={"client_connections": 2**40})
    assert code == 0
    assert found["ulimit -n"][0][0] == "warning"


def test_webhooks_are_reached_and_told_nothing(folder: Path):
    with socket.create_server(("127.0.0.1", 0)) as here:
        port, gone = here.getsockname()[1], free_port()
        urls = {"there": f"http://127.0.0.1:{port}/x", "gone": f"http://127.0.0.1:{gone}/x"}
        code, found = doctor(folder, events={name: {"url": url} for name, url in urls.items()})
        peer, _ = here.accept()
        with peer:
            assert peer.recv(1) == b""
    assert code == 0
    assert found["events.there"] == [("ok", f"127.0.0.1:{port} takes connections; nothing was sent there")]
    ((level, words),) = found["events.gone"]
    assert level == "warning"
    assert f"127.0.0.1:{gone} cannot be reached" in words
