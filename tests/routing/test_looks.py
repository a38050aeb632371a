import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.looks import AT_ONCE, CALM_HOLDS_S, LOAD_HOLDS_S, SOON_S, Looks
from routing.pool import Pool
from routing.types import Call, Endpoint, Load, Tier

TIER = Tier(name="default", max_ttft_s=5.0, waiting_nano_usd_per_s=1e6)


def standings(count):
    pool = Pool()
    return [pool.add(Endpoint(name=f"node-{n}", model="m", served_model="m")) for n in range(count)]


@given(st.integers(1, 120), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=80))
def test_nobody_calm_is_left_for_longer_than_its_load_holds(count, pauses):
    members, looks = standings(count), Looks()
    looks.among(members)
    seen_s = dict.fromkeys(members, -math.inf)
    now_s = 0.0
    for pause_s in pauses:
        now_s += max(pause_s, 2 * LOAD_HOLDS_S)
        longest_s = CALM_HOLDS_S + max(pause_s, 2 * LOAD_HOLDS_S)
        for standing in looks.due(now_s):
            seen_s[standing] = now_s
        # One short of a whole endpoint is kept for the next time.
        slack_s = CALM_HOLDS_S / count
        assert all(now_s - at_s <= longest_s + slack_s + 1e-9 for at_s in seen_s.values())


def test_of_many_calm_endpoints_few_are_looked_at_at_a_time():
    members, looks = standings(1000), Looks()
    looks.among(members)
    assert len(list(looks.due(0.0))) == 1000
    now_s, looked = 0.0, 0
    while now_s < 1.0:
        now_s += 0.01
        looked += len(list(looks.due(now_s)))
    assert looked == pytest.approx(1000 / CALM_HOLDS_S, rel=0.05)


def test_of_few_all_are_looked_at_each_time():
    members, looks = standings(AT_ONCE), Looks()
    looks.among(members)
    for tick in range(5):
        assert set(looks.due(tick * 2 * LOAD_HOLDS_S)) == set(members)


def test_nothing_is_looked_at_twice_within_a_moment():
    members, looks = standings(3), Looks()
    looks.among(members)
    looks.due(0.0)
    assert not list(looks.due(LOAD_HOLDS_S / 2))


def test_who_reads_a_prompt_is_looked_at_each_time():
    members, looks = standings(1000), Looks()
    looks.among(members)
    looks.due(0.0)
    run = members[7].begin(Call("m", TIER, 1000), 0.0)
    looks.saw(members[7], members[7].load(0.0))
    for tick in range(1, 9):
        assert members[7] in set(looks.due(tick * 2 * LOAD_HOLDS_S))
    run.first_token(0.1)
    looks.saw(members[7], members[7].load(0.1))
    assert members[7] not in set(looks.due(0.2))


@pytest.mark.parametrize(("wait_s", "again"), [(SOON_S / 2, True), (SOON_S * 2, False), (None, False)])
def test_who_is_back_soon_is_looked_at_each_time(wait_s, again):
    members, looks = standings(1000), Looks()
    looks.among(members)
    looks.due(0.0)
    looks.saw(members[999], Load(unavailable="asked for a pause", retry_after_s=wait_s))
    assert (members[999] in set(looks.due(2 * LOAD_HOLDS_S))) is again


def test_who_has_left_is_not_looked_at_any_more():
    members, looks = standings(2), Looks()
    looks.among(members)
    members[0].begin(Call("m", TIER, 1000), 0.0)
    looks.saw(members[0], members[0].load(0.0))
    looks.among(members[1:])
    assert set(looks.due(9.0)) == {members[1]}
    looks.among([])
    assert not list(looks.due(20.0))
