"""One timer for all that waits on lanes."""

import pytest
from scripted import ask, serving, until

from backends.base import FirstByteTimeout
from backends.incoming import Patience
from backends.lane import Lane


async def silent(peer):
    await peer.request()
    await peer.lost()


async def test_a_defect_in_one_lane_does_not_stop_the_deadlines_of_others(caplog):
    class Broken(Lane):
        def sweep(self, now_s: float) -> None:
            raise ZeroDivisionError(now_s)

    async with serving(silent) as (_, lane):
        lane_class, lane.__class__ = lane.__class__, Broken
        await until(lambda: "sweeping the lane" in caplog.text)
        lane.__class__ = lane_class
        with pytest.raises(FirstByteTimeout):
            await ask(lane, b"", Patience(0.1, 9.0, 9.0))
