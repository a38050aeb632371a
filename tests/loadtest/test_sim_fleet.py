import random

from loadtest.sim import fleet


def test_a_worker_of_each_class_is_there_four_times_and_some_are_far_away():
    nodes = fleet.unequal(random.Random(1))
    assert sorted(node.gpu for node in nodes) == sorted([*fleet.CLASSES] * 4)
    assert min(node.rtt_s for node in nodes) == 0.002
    assert round(max(node.rtt_s for node in nodes), 3) == 0.12


def test_misdeclaring_changes_what_is_said_and_not_what_is():
    nodes = fleet.unequal(random.Random(1))
    said = fleet.misdeclared(nodes, 0.4, random.Random(1))
    assert sum(a.gpu != b.gpu for a, b in zip(nodes, said, strict=True)) == 5
    assert [node.spec for node in said] == [node.spec for node in nodes]


def test_twice_the_work_is_about_half_the_capacity():
    nodes = fleet.equal()
    light = fleet.capacity_per_s(nodes, fleet.Shape(work=2000, prompt_tokens=2000, output_tokens=1))
    heavy = fleet.capacity_per_s(nodes, fleet.Shape(work=4000, prompt_tokens=2000, output_tokens=1))
    assert 1.9 < light / heavy < 2.1


def test_mishaps_come_in_order_and_everybody_who_leaves_comes_back():
    found = fleet.mishaps(fleet.CHURNS["20min"], 12, 3600.0, random.Random(1))
    assert [mishap.at_s for mishap in found] == sorted(mishap.at_s for mishap in found)
    kinds = [mishap.kind for mishap in found]
    assert kinds.count("back") == kinds.count("reset") + kinds.count("silence")
    assert kinds.count("slow") == kinds.count("recover") > 0
    assert 15 < kinds.count("back") < 60
    assert 0 < kinds.count("notice") < kinds.count("back")


def test_without_churn_nothing_happens():
    assert fleet.mishaps(fleet.CHURNS["none"], 12, 3600.0, random.Random(1)) == []


def test_a_hosted_endpoint_takes_longer_for_a_longer_prompt():
    [hosted, _] = fleet.HOSTED
    short = sum(hosted.first_token_s(100, random.Random(seed)) for seed in range(50)) / 50
    long = sum(hosted.first_token_s(40_000, random.Random(seed)) for seed in range(50)) / 50
    assert 0.2 < short < 0.5
    assert long > short + 0.7
