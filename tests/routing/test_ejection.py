import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.ejection import Ejection, FailureKind

MIDDLE = 0.5
"""The roll that jitters by nothing."""


def ejected_s(ejection: Ejection, now_s: float):
    return ejection.state(now_s)[1]


def test_an_endpoint_that_never_failed_is_available():
    assert Ejection().state(0.0) == (None, None)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("connect", "ejected: it could not be reached"), ("reset", "ejected: it closed the connection")],
)
def test_one_refused_or_closed_connection_ejects_at_once_for_a_second(kind: FailureKind, reason: str):
    ejection = Ejection()
    ejection.failed(10.0, kind, MIDDLE)
    assert ejection.state(10.0) == (reason, pytest.approx(1.0))
    assert ejection.state(11.0) == (None, None)
    assert ejection.ejections == 1


@pytest.mark.parametrize("kind", ["timeout", "server_error"])
def test_other_failures_eject_after_two_in_a_row(kind: FailureKind):
    ejection = Ejection()
    ejection.failed(0.0, kind, MIDDLE)
    assert ejection.state(0.0) == (None, None)
    ejection.succeeded(0.1)
    ejection.failed(0.2, kind, MIDDLE)
    assert ejection.state(0.2) == (None, None)
    ejection.failed(0.3, kind, MIDDLE)
    assert ejected_s(ejection, 0.3) == pytest.approx(1.0)


def test_each_failure_on_return_doubles_the_time_up_to_a_minute():
    ejection, now_s, seen = Ejection(), 0.0, []
    for _ in range(9):
        ejection.failed(now_s, "connect", MIDDLE)
        seen.append(ejected_s(ejection, now_s))
        now_s += seen[-1]
    assert seen == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
    assert ejection.ejections == 9


@pytest.mark.parametrize(("roll", "seconds"), [(0.0, 0.8), (0.25, 0.9), (0.75, 1.1)])
def test_the_roll_jitters_by_up_to_a_fifth(roll: float, seconds: float):
    ejection = Ejection()
    ejection.failed(0.0, "connect", roll)
    assert ejected_s(ejection, 0.0) == pytest.approx(seconds)


def test_calls_that_fail_together_are_one_ejection():
    ejection = Ejection()
    for place in range(32):
        ejection.failed(place * 0.01, "connect", MIDDLE)
    assert ejection.ejections == 1
    assert ejection.state(1.0) == (None, None)


def test_half_open_one_error_is_enough():
    ejection = Ejection()
    ejection.failed(0.0, "server_error", MIDDLE)
    ejection.failed(0.0, "server_error", MIDDLE)
    ejection.failed(1.5, "server_error", MIDDLE)
    assert ejected_s(ejection, 1.5) == pytest.approx(2.0)


def test_a_success_on_return_makes_two_errors_necessary_again_but_remembers_the_time():
    ejection = Ejection()
    ejection.failed(0.0, "server_error", MIDDLE)
    ejection.failed(0.0, "server_error", MIDDLE)
    ejection.succeeded(1.5)
    ejection.failed(2.0, "server_error", MIDDLE)
    assert ejection.state(2.0) == (None, None)
    ejection.failed(2.1, "server_error", MIDDLE)
    assert ejected_s(ejection, 2.1) == pytest.approx(2.0)


def test_a_success_of_a_call_sent_before_the_ejection_does_not_end_it():
    ejection = Ejection()
    ejection.failed(0.0, "connect", MIDDLE)
    ejection.succeeded(0.5)
    assert ejected_s(ejection, 0.5) == pytest.approx(0.5)
    ejection.failed(1.5, "server_error", MIDDLE)
    assert ejected_s(ejection, 1.5) == pytest.approx(2.0)


def test_a_streak_of_successes_forgets_past_ejections():
    ejection = Ejection()
    ejection.failed(0.0, "connect", MIDDLE)
    ejection.failed(2.0, "connect", MIDDLE)
    for _ in range(10):
        ejection.succeeded(10.0)
    ejection.failed(11.0, "connect", MIDDLE)
    assert ejected_s(ejection, 11.0) == pytest.approx(1.0)


def test_five_quiet_minutes_forget_past_ejections():
    ejection = Ejection()
    ejection.failed(0.0, "connect", MIDDLE)
    ejection.failed(1.0, "connect", MIDDLE)
    ejection.failed(303.1, "server_error", MIDDLE)
    assert ejection.state(303.1) == (None, None)
    ejection.failed(303.2, "connect", MIDDLE)
    assert ejected_s(ejection, 303.2) == pytest.approx(1.0)


@pytest.mark.parametrize(("asked_s", "granted_s"), [(5.0, 5.0), (3600.0, 60.0)])
def test_a_pause_asked_for_is_granted_up_to_a_minute(asked_s: float, granted_s: float):
    ejection = Ejection()
    ejection.cool_down(0.0, asked_s)
    assert ejection.state(0.0) == ("asked for a pause", pytest.approx(granted_s))
    assert ejection.state(granted_s) == (None, None)
    assert (ejection.cool_downs, ejection.ejections) == (1, 0)


def test_a_pause_of_nothing_or_less_is_none():
    ejection = Ejection()
    ejection.cool_down(0.0, 0.0)
    ejection.cool_down(0.0, -5.0)
    assert ejection.state(0.0) == (None, None)


def test_a_failed_check_takes_an_endpoint_out_until_one_succeeds():
    ejection = Ejection()
    ejection.health(0.0, False, "HTTP 503", 2.0)
    assert ejection.state(0.5) == ("health check failed: HTTP 503", pytest.approx(1.5))
    assert ejection.state(60.0) == ("health check failed: HTTP 503", 0.0)
    ejection.health(60.0, True)
    assert ejection.state(60.0) == (None, None)
    assert ejection.failed_checks == 1


def test_a_good_check_lifts_an_ejection_for_refused_connections():
    ejection = Ejection()
    ejection.failed(0.0, "connect", MIDDLE)
    ejection.health(0.1, True)
    assert ejection.state(0.1) == (None, None)
    ejection.failed(0.2, "server_error", MIDDLE)
    assert ejected_s(ejection, 0.2) == pytest.approx(2.0), "it comes back half open"


@pytest.mark.parametrize("kind", ["reset", "timeout", "server_error"])
def test_a_good_check_is_no_promise_that_calls_are_answered(kind: FailureKind):
    ejection = Ejection()
    ejection.failed(0.0, kind, MIDDLE)
    ejection.failed(0.0, kind, MIDDLE)
    ejection.health(0.1, True)
    assert ejected_s(ejection, 0.1) == pytest.approx(0.9)


def test_the_longest_of_several_reasons_sets_the_wait():
    ejection = Ejection()
    ejection.cool_down(0.0, 30.0)
    ejection.failed(0.0, "connect", MIDDLE)
    assert ejected_s(ejection, 0.0) == pytest.approx(30.0)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["connect", "reset", "timeout", "server_error", "succeeded", "cool_down", "check"]),
        st.floats(-10.0, 100.0),
        st.floats(0.0, 1.0, exclude_max=True),
    )
)


@given(EVENTS)
def test_no_sequence_of_events_keeps_an_endpoint_out_for_longer_than_its_bounds(
    events: list[tuple[str, float, float]],
):
    ejection, now_s = Ejection(), 1000.0
    for what, passed_s, roll in events:
        now_s += passed_s
        if what == "succeeded":
            ejection.succeeded(now_s)
        elif what == "cool_down":
            ejection.cool_down(now_s, roll * 1000)
        elif what == "check":
            ejection.health(now_s, True)
        else:
            ejection.failed(now_s, what, roll)
        reason, wait_s = ejection.state(now_s)
        assert (reason is None) == (wait_s is None)
    latest_s = 1000.0 + sum(abs(passed_s) for _, passed_s, _ in events)
    assert ejection.state(latest_s + 72.0) == (None, None)


def test_successes_with_a_failure_between_them_are_no_streak():
    ejection = Ejection()
    ejection.failed(0.0, "connect", MIDDLE)
    for _ in range(9):
        ejection.succeeded(10.0)
    ejection.failed(11.0, "timeout", MIDDLE)
    ejection.succeeded(12.0)
    ejection.failed(13.0, "connect", MIDDLE)
    assert ejected_s(ejection, 13.0) == pytest.approx(2.0)


def test_one_that_joins_gets_no_call_until_a_probe_has_succeeded():
    ejection = Ejection()
    ejection.join(5.0)
    assert ejection.state(5.0) == ("it is being probed", 0.0)
    assert ejection.out(5.0)
    assert ejection.on_probation
    assert ejection.probed(6.0, "it does not serve sim", MIDDLE) == pytest.approx(1.0)
    assert ejection.state(6.5) == ("probe failed: it does not serve sim", pytest.approx(0.5))
    ejection.health(6.6, ok=True)
    assert ejection.state(100.0)[0] == "probe failed: it does not serve sim"
    assert ejection.probed(7.0, None, MIDDLE) == 0.0
    assert ejection.state(7.0) == (None, None)
    assert not ejection.out(7.0)


def test_probes_that_fail_come_less_often_but_often_enough():
    ejection = Ejection()
    ejection.join(0.0)
    assert [ejection.probed(0.0, "no", MIDDLE) for _ in range(6)] == pytest.approx([1, 2, 4, 8, 10, 10])


def test_the_first_failure_of_one_that_has_just_joined_ejects_it():
    ejection = Ejection()
    ejection.join(0.0)
    ejection.probed(0.0, None, MIDDLE)
    ejection.failed(1.0, "server_error", MIDDLE)
    assert ejected_s(ejection, 1.0) == pytest.approx(1.0)


def test_one_that_comes_and_goes_is_kept_out_for_longer_each_time():
    ejection, now_s, kept_out_s = Ejection(), 0.0, []
    for _ in range(9):
        ejection.health(now_s, ok=False)
        ejection.health(now_s + 1.0, ok=True)
        reason, wait_s = ejection.state(now_s + 1.0)
        kept_out_s.append(wait_s)
        assert reason in (None, "kept out: it comes and goes")
        now_s += 70.0
    assert kept_out_s == pytest.approx([None, 2, 4, 8, 16, 32, 60, 60, 60])


def test_that_a_flapping_one_can_be_reached_does_not_bring_it_back():
    ejection = Ejection()
    for now_s in (0.0, 10.0):
        ejection.failed(now_s, "connect", MIDDLE)
        ejection.health(now_s + 1.0, ok=False)
        ejection.health(now_s + 2.0, ok=True)
    ejection.health(12.5, ok=True)
    assert ejection.state(12.5) == ("kept out: it comes and goes", pytest.approx(1.5))
    assert ejection.state(14.1) == (None, None)


def test_having_gone_long_ago_is_forgotten():
    ejection = Ejection()
    for now_s in (0.0, 400.0, 800.0):
        ejection.health(now_s, ok=False)
        ejection.health(now_s + 1.0, ok=True)
        assert ejection.state(now_s + 1.0) == (None, None)


def test_a_lease_that_is_lost_counts_as_having_gone():
    ejection = Ejection()
    for now_s in (0.0, 30.0):
        ejection.fell(now_s)
        ejection.join(now_s + 5.0)
        ejection.probed(now_s + 6.0, None, MIDDLE)
    assert ejection.state(36.0) == ("kept out: it comes and goes", pytest.approx(2.0))


def test_who_has_the_wrong_model_or_a_dead_engine_is_out_at_once():
    for kind, reason in (
        ("engine_dead", "ejected: its engine crashed"),
        ("model_missing", "ejected: it does not have the model"),
    ):
        ejection = Ejection()
        ejection.failed(0.0, kind, MIDDLE)
        assert ejection.state(0.5) == (reason, pytest.approx(0.5))
        ejection.health(0.6, ok=True)  # which says nothing of either
        assert ejection.state(0.7)[0] == reason


def test_a_pardon_is_as_if_the_last_ejection_had_not_been():
    ejection = Ejection()
    ejection.failed(0.0, "reset", MIDDLE)
    ejection.failed(10.0, "reset", MIDDLE)
    ejection.pardon(10.1)
    assert ejection.state(10.1) == (None, None)
    assert ejection.well
    ejection.failed(20.0, "reset", MIDDLE)
    assert ejection.state(20.0)[1] == pytest.approx(2.0)  # the second time, as it was before


def test_one_is_well_until_it_fails_and_again_once_it_has_answered():
    ejection = Ejection()
    assert ejection.well
    ejection.failed(0.0, "server_error", MIDDLE)
    assert not ejection.well
    ejection.succeeded(1.0)
    assert ejection.well
    ejection.failed(2.0, "reset", MIDDLE)
    assert not ejection.well  # back in service, it has still to show that
    assert ejection.state(9.0) == (None, None)
    assert not ejection.well
    ejection.succeeded(9.0)
    assert ejection.well
