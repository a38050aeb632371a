import asyncio
import itertools
import time
from contextlib import asynccontextmanager

import pytest
from scripted import Script, Server, answers, ask, until

from backends.fleet import FleetSettings
from backends.health import check, watch
from backends.incoming import Patience
from backends.lane import LaneLimits
from backends.member import Member
from backends.rounds import JITTER
from backends.sweep import Sweep
from backends.worker import Access
from routing.pool import Pool
from routing.types import Endpoint


def reply(status: int) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status


@asynccontextmanager
async def member_at(*scripts: Script, connections: int = 4):
    async with Server(*scripts) as server:
        url = f"http://127.0.0.1:{server.port}"
        settings = FleetSettings(LaneLimits(connections=connections), Patience())
        member = Member(Endpoint("w", "m", "m", url=url), Access(url), settings, Pool())
        async with Sweep(lambda: [member.lane], interval_s=0.005):
            yield server, member
            await member.lane.close()


def unavailable(member: Member) -> str | None:
    member.changed()
    return member.load(time.monotonic()).unavailable


@pytest.mark.parametrize("status", [200, 204, 404, 500, 503])
async def test_only_a_200_is_healthy(status: int):
    async with member_at(answers(reply(status))) as (server, member):
        await check(member, 1.0, 5.0)
        assert member.checked
        assert server.peers[0].requests[0][0].startswith(b"GET /health HTTP/1.1\r\n")
        reason = unavailable(member)
        assert reason is None if status == 200 else f"/health answered {status}" in reason


async def test_a_worker_that_does_not_answer_in_time_is_not_healthy():
    async def script(peer):
        await peer.lost()

    async with member_at(script) as (_, member):
        start_s = time.monotonic()
        await check(member, 0.1, 5.0)
        assert time.monotonic() - start_s < 0.5
        assert unavailable(member) == "health check failed: /health did not answer within 0.1 s"


async def test_a_worker_in_full_use_is_not_sick():
    async def script(peer):
        await peer.lost()

    async with member_at(script, connections=1) as (_, member):
        call = asyncio.create_task(ask(member.lane))
        await until(lambda: member.lane.connections == 1)
        await check(member, 1.0, 5.0)
        assert member.ejection.failed_checks == 0
        assert not member.checked
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_checks_come_at_uneven_intervals():
    at_s = []

    async def script(peer):
        while True:
            await peer.request()
            at_s.append(time.monotonic())
            await peer.send(reply(200))

    async with member_at(script) as (_, member), watch(member, 0.05, 1.0):
        await until(lambda: len(at_s) >= 12)
    gaps = [after - before for before, after in itertools.pairwise(at_s)]
    assert min(gaps) > 0.05 * (1 - JITTER) * 0.9
    assert max(gaps) - min(gaps) > 0.001


async def test_checks_end_with_their_block():
    async with member_at(answers(reply(200))) as (server, member):
        async with watch(member, 0.01, 1.0):
            await until(lambda: server.peers and len(server.peers[0].requests) > 2)
        count = len(server.peers[0].requests)
        await asyncio.sleep(0.05)
        assert len(server.peers[0].requests) == count


async def test_a_defect_in_a_check_is_logged_and_does_not_end_the_checks(caplog):
    class Defective(Member):
        @property
        def backend(self):
            raise ZeroDivisionError

        @backend.setter
        def backend(self, value):
            self._backend = value

    async with member_at(answers(reply(200))) as (_, member):
        member.__class__ = Defective
        async with watch(member, 0.01, 1.0):
            await until(lambda: caplog.text.count("checking w failed") >= 2)
            assert "ZeroDivisionError" in caplog.text
            assert not member.checked
            member.__class__ = Member
            await until(lambda: member.checked)


async def test_a_check_that_this_process_itself_was_too_late_for_is_made_again():
    async with member_at(answers(reply(200)), answers(reply(200))) as (_, member):
        checking = asyncio.create_task(check(member, 0.1, 5.0))
        await asyncio.sleep(0)
        time.sleep(1.0)  # noqa: ASYNC251 - nothing here has a turn meanwhile
        await checking
        assert unavailable(member) is None
