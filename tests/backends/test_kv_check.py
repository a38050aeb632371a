from backends.kv_check import LEAST_TOKENS, SelfCheck, SentCalls

HERE, THERE = "tcp://a:5557", "tcp://b:5557"
BLOCK = 16


def checked() -> tuple[SelfCheck, SentCalls]:
    sent = SentCalls()
    return SelfCheck(HERE, sent), sent


def judge_twice(check: SelfCheck, *, finds_cached: bool = False) -> str | None:
    """A call counts from the second judgement on: its events may come a little later than its reply."""
    first = check.judge(finds_cached=finds_cached)
    return first or check.judge(finds_cached=finds_cached)


def test_events_are_believed_once_they_tell_of_what_was_computed():
    check, _ = checked()
    assert not check.believed
    check.used(4000, 0, BLOCK)
    check.stored(3984, None)
    assert judge_twice(check) is None
    assert check.believed
    assert check.mismatches == 0


def test_events_that_tell_of_nothing_are_not_believed_any_more():
    check, _ = checked()
    check.used(4000, 0, BLOCK)
    check.stored(3984, None)
    judge_twice(check)
    check.used(40_000, 1000, BLOCK)
    reason = judge_twice(check)
    assert reason is not None
    assert "tokens stored where calls stored" in reason
    assert not check.believed
    assert check.mismatches == 1


def test_prompts_that_were_cached_or_short_need_not_be_told_of():
    check, _ = checked()
    for _ in range(1000):
        check.used(2 * BLOCK, 0, BLOCK)
        check.used(4000, 3984, BLOCK)
    assert judge_twice(check) is None
    assert not check.believed


def test_a_little_proves_nothing():
    check, _ = checked()
    check.used(LEAST_TOKENS, 0, BLOCK)
    assert judge_twice(check) is None
    assert not check.believed


def test_a_worker_that_never_says_what_it_found_cached_is_not_suspected_for_it():
    check, _ = checked()
    check.used(40_000, 0, BLOCK)
    assert judge_twice(check, finds_cached=True) is None
    assert not check.believed


def test_events_of_calls_that_were_sent_to_another_worker_are_found_out():
    check, sent = checked()
    for number in range(10):
        sent.note(f"r{number}", THERE)
        check.stored(400, f"r{number}")
    reason = check.judge(finds_cached=False)
    assert reason == "4000 tokens are of calls that were sent to other workers"
    assert check.mismatches == 1


def test_a_call_that_failed_over_belongs_to_both_workers_and_strangers_to_none():
    check, sent = checked()
    sent.note("r", THERE)
    sent.note("r", HERE)
    check.stored(4000, "r")
    check.stored(400_000, "somebody else's")
    check.stored(400_000, None)
    assert check.judge(finds_cached=False) is None


def test_what_was_missed_proves_nothing():
    check, _ = checked()
    check.used(40_000, 0, BLOCK)
    check.forget()
    assert judge_twice(check) is None


def test_only_the_latest_calls_are_remembered():
    sent = SentCalls(most_calls=3)
    for number in range(5):
        sent.note(f"r{number}", HERE)
    assert [sent.workers(f"r{number}") for number in range(5)] == [(), (), (HERE,), (HERE,), (HERE,)]
