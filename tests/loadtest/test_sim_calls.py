import json
import random

import pytest

from loadtest.sim import calls, fleet


def test_the_next_turn_begins_with_the_prompt_and_the_answer_before_it():
    made = sorted(calls.chat(random.Random(1), 1.0, 300.0), key=lambda call: call.at_s)
    by_start = {call.pages[:20]: call for call in made if len(call.pages) >= 20}
    assert any(call.earlier_tokens for call in made)
    for call in made:
        assert len(call.pages) == call.prompt_tokens // calls.PAGE_TOKENS
        assert call.earlier_tokens < call.prompt_tokens
    assert by_start


def test_a_turn_names_the_one_before_it_and_how_far_its_answer_goes():
    made = sorted(calls.chat(random.Random(1), 1.0, 300.0), key=lambda call: call.at_s)
    by_name = {call.turn.whole: call for call in made}
    assert len(by_name) == len(made)
    followed = [(by_name[call.turn.asked], call) for call in made if call.turn.asked in by_name]
    assert followed
    for before, call in followed:
        assert call.pages[: call.turn.answered] == before.pages + before.answer


def test_conversations_are_under_way_from_the_start():
    made = list(calls.chat(random.Random(1), 2.0, 200.0))
    early = sum(call.at_s < 50 for call in made)
    late = sum(call.at_s >= 150 for call in made)
    assert early == pytest.approx(late, rel=0.35)
    assert any(call.at_s < 50 and call.earlier_tokens for call in made)


def test_bursts_share_a_document_and_come_together():
    made = [call for call in calls.bursts(random.Random(1), 2.0, 120.0) if not call.earlier_tokens]
    siblings = [call for call in made if call.pages[0] == made[0].pages[0]]
    assert len(siblings) == 10
    assert max(call.at_s for call in siblings) - min(call.at_s for call in siblings) < 1.0


def test_little_sharing_is_little():
    made = list(calls.little(random.Random(1), 10.0, 100.0))
    seen: set[int] = set()
    shared = total = 0
    for call in made:
        shared += sum(page in seen for page in call.pages)
        total += len(call.pages)
        seen.update(call.pages)
    assert 0.1 < shared / total < 0.35


def test_a_load_is_that_share_of_what_the_fleet_can_do():
    nodes = fleet.unequal(random.Random(1))
    half = calls.generated("little", nodes, 0.5, 120.0, random.Random(1))
    whole = calls.generated("little", nodes, 1.0, 120.0, random.Random(1))
    assert half.per_s / half.capacity_per_s == pytest.approx(0.5, rel=0.1)
    assert whole.per_s == pytest.approx(2 * half.per_s, rel=0.15)


def test_a_trace_is_replayed_at_the_load_asked_for(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [
        {
            "timestamp": 1000 * number,
            "input_length": 1500,
            "output_length": 20,
            "hash_ids": [1, 2 + number // 2, 100 + number],
        }
        for number in range(100)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [first, second, third, *_] = calls.trace(path)
    assert (first.pages, first.earlier_tokens) == ((1, 2), 0)
    assert second.earlier_tokens == 1024
    assert third.earlier_tokens == 0
    replay = calls.replayed(path, fleet.equal(), 0.5, 1e9, random.Random(1))
    assert len(replay.calls) == 100
    span_s = replay.calls[-1].at_s - replay.calls[0].at_s
    assert 100 / span_s == pytest.approx(0.5 * replay.capacity_per_s, rel=0.02)
