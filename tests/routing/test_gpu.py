import pytest

from routing.gpu import GPUS, UNKNOWN_GPU, kv_tokens_for, prior_for


@pytest.mark.parametrize(
    ("spelling", "card"),
    [
        ("rtx-4090", "4090"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("RTX4090", "4090"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("l40s", "l40s"),
        ("L4", "l4"),
    ],
)
def test_a_gpu_is_known_by_any_usual_spelling(spelling: str, card: str):
    assert prior_for(spelling) == prior_for(card)
    assert prior_for(spelling).work_per_s == pytest.approx(GPUS[card].tflops * 1e12 * 0.5 / 16e9)


@pytest.mark.parametrize("gpu", [None, "", "abacus", "a4000"])
def test_an_unknown_gpu_is_taken_for_a_middling_one(gpu: str | None):
    assert prior_for(gpu) == prior_for("4090")
    rates = sorted(card.tflops for card in GPUS.values())
    assert rates[2] < UNKNOWN_GPU.tflops < rates[-3]


def test_priors_are_ordered_as_the_cards_are():
    l4, rtx, h100 = prior_for("l4"), prior_for("rtx-4090"), prior_for("h100")
    assert l4.work_per_s < rtx.work_per_s < h100.work_per_s
    assert l4.step_s > rtx.step_s > h100.step_s


@pytest.mark.parametrize(("gpu", "tokens"), [("h100", 427_000), ("4090", 42_700), ("t4", 16_384)])
def test_a_cards_memory_tells_how_many_tokens_it_can_keep(gpu: str, tokens: int):
    assert kv_tokens_for(gpu) == pytest.approx(tokens, rel=0.01)
