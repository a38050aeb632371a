import asyncio

import pytest

from loadtest.conversations import Call, Conversation, Turn, conversations, hold
from loadtest.proxies import Running, Tidegate
from loadtest.routing_bench import Plan, Speed, markdown, notes, reading_of, routers, run_bench, tables
from loadtest.worker import Fault, SimWorker, WorkerSpec


def running(worker):
    return Running("worker", 0, f"{worker.url}/v1", "none", 0.0)


def test_the_same_seed_gives_the_same_conversations_and_another_seed_others():
    first, again, other = (conversations("chat", seed, 30.0, 3000.0) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", ["chat", "little"])
def test_conversations_bring_as_many_new_tokens_a_second_as_were_asked_for(kind):
    begun = conversations(kind, 3, 600.0, 3000.0)
    assert sum(each.new_tokens for each in begun) / 600.0 == pytest.approx(3000.0, rel=0.15)
    assert all(0 <= each.start_s < 600 for each in begun)


def test_chats_share_system_prompts_and_have_turns_where_little_sharing_has_neither():
    chat, little = (conversations(kind, 1, 60.0, 5000.0) for kind in ("chat", "little"))
    assert 1 < len({each.system for each in chat}) <= 8 < len(chat)
    assert max(len(each.turns) for each in chat) == 8
    assert {each.system for each in little} == {""}
    assert {len(each.turns) for each in little} == {1}
    assert len({each.turns[0].text for each in little}) == len(little)


async def test_the_next_turn_carries_all_that_was_said_and_finds_it_cached():
    turns = tuple(Turn(" tide" * 64, 64, 16, 0.0) for _ in range(3))
    async with SimWorker(WorkerSpec(decode_s_per_token=0.0)) as worker:
        calls = await hold(
            [Conversation(0.0, " calm" * 160, turns)], running(worker), worker.spec.model, timeout_s=20
        )
        engine = worker.engine
        assert [call.outcome for call in calls] == ["ok"] * 3
        # New in the second and third turn: 64 tokens each, the template's, and what ends within a block.
        assert engine.prompt_tokens - engine.cached_tokens < (160 + 3 * 64) + 3 * 32
        assert engine.prompt_tokens > 3 * 160 + (1 + 2 + 3) * 64


async def test_a_conversation_ends_with_the_call_that_fails_and_others_go_on():
    bad, good = (Turn(text, 1, 4, 0.0) for text in (" calm", " tide"))
    spec = WorkerSpec(decode_s_per_token=0.0, faults=(Fault(kind="status", status=503, match="calm"),))
    async with SimWorker(spec) as worker:
        both = [Conversation(0.0, "", (bad, good)), Conversation(0.0, "", (good, good))]
        calls = await hold(both, running(worker), worker.spec.model, timeout_s=20)
    assert sorted(call.outcome for call in calls) == ["ok", "ok", "status_503"]


async def test_a_call_that_takes_too_long_is_a_timeout():
    async with SimWorker(WorkerSpec(prefill_tokens_per_s=1.0)) as worker:
        [call] = await hold(
            [Conversation(0.0, "", (Turn(" tide" * 100, 100, 4, 0.0),))],
            running(worker),
            worker.spec.model,
            timeout_s=0.2,
        )
        assert call.outcome == "timeout"
        assert call.ttft_s is None


def test_a_call_without_a_first_token_counts_as_one_that_waited_to_the_end():
    calls = [Call("ok", 1.0, 2.0), Call("ok", 3.0, 4.0), Call("timeout", None, 30.0)]
    reading = reading_of(calls, 30.0, 0.5, 0.1, 0.1)
    assert (reading.calls, reading.errors) == (3, 1)
    assert (reading.ttft_p50_s, reading.ttft_p99_s, reading.e2e_p50_s) == (3.0, 30.0, 4.0)


async def test_the_bench_measures_what_is_there_and_names_what_is_not(tmp_path):
    plan = Plan(
        speeds=(Speed(1, 20_000.0, 0.002, 1024), Speed(1, 10_000.0, 0.002, 1024)),
        load=0.2,
        seconds=1.0,
        rounds=1,
        workloads=("little",),
        server_core=None,
        load_core=None,
    )
    absent = next(each for each in routers([]) if each.name == "sglang-router")
    chosen = [Tidegate(), absent] if absent.missing() else [Tidegate()]
    said: list[str] = []
    outcome = await asyncio.wait_for(run_bench(plan, chosen, tmp_path, said.append), 120)
    reading = outcome.medians["little"]["tidegate"]
    assert reading.calls > 0
    assert reading.errors == 0
    assert 0 < reading.ttft_p50_s <= reading.ttft_p99_s
    assert len(said) == 1
    assert [problem.partition(":")[0] for problem in outcome.problems] == [each.name for each in chosen[1:]]
    assert len(tables(outcome)) == 1
    assert "| tidegate |" in markdown(outcome)
    assert "one round" in notes(outcome)[0]
