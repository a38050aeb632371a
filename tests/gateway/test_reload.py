from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from config_files import MINIMAL

from gateway.config import Config, Limits
from gateway.database import StoreAway
from gateway.reload import FIXED, FIXED_LIMITS, TAKEN, TAKEN_LIMITS, ConfigFile, Reload

if TYPE_CHECKING:
    from pathlib import Path


def test_of_every_key_it_is_decided_whether_it_changes_while_the_gateway_runs():
    assert sorted((*FIXED, *TAKEN)) == sorted(Config.model_fields)
    assert sorted((*FIXED_LIMITS, *TAKEN_LIMITS)) == sorted(Limits.model_fields)


async def test_a_file_is_read_only_when_two_looks_have_seen_the_same(tmp_path: Path):
    path, taken = tmp_path / "tidegate.yaml", []

    async def take(new: Config) -> None:
        taken.append(new)

    path.write_text(MINIMAL)
    file = ConfigFile.at(path, {}, {})
    started_with = file.load()
    reload = Reload(file, started_with, take)
    for _ in range(3):
        await reload.look()
    assert taken == []
    path.write_text(MINIMAL + "queue: {calls: 5}\nlisten: {port: 9}\n")
    await reload.look()
    assert taken == []
    await reload.look()
    (new,) = taken
    assert (new.queue.calls, new.listen.port) == (5, started_with.listen.port)
    await reload.look()
    assert len(taken) == 1


async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path):
    path, taken = tmp_path / "tidegate.yaml", []

    async def take(new: Config) -> None:
        taken.append(new)

    path.write_text(MINIMAL)
    file = ConfigFile.at(path, {}, {})
    reload = Reload(file, file.load(), take)
    path.unlink()
    for _ in range(3):
        await reload.look()
    reload.ask()
    await reload.look()
    assert taken == []
    path.write_text(MINIMAL + "queue: {calls: 5}\n")
    reload.ask()
    await reload.look()
    assert len(taken) == 1


async def test_what_could_be_taken_over_only_in_part_is_taken_over_again(tmp_path: Path):
    path, taken = tmp_path / "tidegate.yaml", []
    more = "queue: {calls: 5}\n"

    async def take(new: Config) -> None:
        taken.append(new.queue.calls)
        if len(taken) == 1:
            raise StoreAway("for a moment")

    path.write_text(MINIMAL)
    file = ConfigFile.at(path, {}, {})
    before = file.load().queue.calls
    reload = Reload(file, file.load(), take)
    path.write_text(MINIMAL + more)
    await reload.look()
    with pytest.raises(StoreAway):
        await reload.look()
    await reload.look()
    assert taken == [5, 5]
    await reload.look()
    assert taken == [5, 5]

    del taken[:]
    path.write_text(MINIMAL + more.replace("5", "6"))
    await reload.look()
    with pytest.raises(StoreAway):
        await reload.look()
    path.write_text(MINIMAL + more)  # as it was: but nobody knows how much of the other is in force
    await reload.look()
    await reload.look()
    assert taken[-1] == 5 != before


async def test_an_address_for_administration_takes_a_restart(tmp_path: Path):
    path = tmp_path / "tidegate.yaml"
    path.write_text(MINIMAL)
    file = ConfigFile.at(path, {}, {})

    async def take(new: Config) -> None:
        assert new.admin.listen is None

    reload = Reload(file, file.load(), take)
    path.write_text(MINIMAL + "admin: {listen: {port: 9}}\nqueue: {calls: 5}\n")
    reload.ask()
    await reload.look()
    assert (reload.shown().valid, reload.shown().waiting) == (True, ["admin.listen"])
