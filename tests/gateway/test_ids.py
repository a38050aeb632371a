from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from gateway.ids import call_ids


def taken(count: int) -> list[str]:
    next_id = call_ids()
    return [next_id() for _ in range(count)]


def test_an_id_is_31_hex_digits_with_the_time_in_front():
    before_ms = time.time_ns() // 1_000_000
    (made,) = taken(1)
    assert len(made) == 31
    assert set(made) <= set("0123456789abcdef")
    assert before_ms <= int(made[:11], 16) <= time.time_ns() // 1_000_000


def test_ids_of_one_source_differ_and_are_in_the_order_they_were_taken():
    ids = taken(20_000)
    assert len(set(ids)) == len(ids)
    times = [made[:11] for made in ids]
    if times == sorted(times):  # unless the machine's clock was set back meanwhile
        assert ids == sorted(ids)
    assert len({made[11:23] for made in ids}) == 1
    assert [int(made[23:], 16) for made in ids] == list(range(len(ids)))


def test_ids_of_many_sources_differ_even_in_one_millisecond():
    sources = [call_ids() for _ in range(2000)]
    ids = [next_id() for next_id in sources for _ in range(3)]
    assert len(set(ids)) == len(ids)
    assert len({made[11:23] for made in ids}) == len(sources)


def test_ids_taken_in_several_threads_differ():
    next_id = call_ids()
    with ThreadPoolExecutor(8) as pool:
        ids = [
            made
            for batch in pool.map(lambda _: list(islice(iter(next_id, None), 2000)), range(8))
            for made in batch
        ]
    assert len(set(ids)) == len(ids) == 16_000
