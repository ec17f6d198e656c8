"""The floor by hand: a model of known size on a machine of known rates."""

import pytest
import torch
from tiny import tiny_model

from klent.measure.roofline import Floor
from klent.streams.batch import make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.training.update import FirstPass, UpdateResult

FLOOR = Floor(operations=1000.0, bytes=100.0, body=10, head=5, width=4, trained=(3, 4))


def batch_of(lengths: list[int], prompts: list[int], group_size: int):
    rollouts = [
        Episode(
            prompt=Prompt(str(i), "?"),
            prompt_ids=[1] * prompts[i // group_size],
            tokens=torch.ones(n, dtype=torch.long),
            logp=torch.zeros(n),
            entropy=torch.zeros(n),
            text="",
            finish="stop",
        )
        for i, n in enumerate(lengths)
    ]
    return make_batch(rollouts, [0.0] * len(rollouts), group_size=group_size)


def test_a_rollout_reads_each_prompt_once_and_is_bound_by_memory_or_products():
    batch = batch_of([3, 2, 4, 1], [6, 2], group_size=2)
    first = 2 * (10 * 8 + 5 * 2) / 1000
    products = 2 * 15 * (2 + 1 + 3 + 0) / 1000
    reading = 15 * 4 * 3 / 100
    assert reading > products
    assert FLOOR.rollout(batch) == pytest.approx(first + reading)
    wide = Floor(operations=10.0, bytes=1e9, body=10, head=5, width=4, trained=(3, 4))
    assert wide.rollout(batch) == pytest.approx(100 * (first + products), rel=1e-5)


def test_training_is_three_products_a_weight_and_four_for_the_head():
    result = UpdateResult(FirstPass.of(batch_of([1], [1], 1)), torch.zeros(1, 1), tokens=20, targets=7)
    assert FLOOR.train(result) == pytest.approx(2 * (3 * 10 * 20 + 4 * 5 * 7) / 1000)


def test_the_sizes_are_those_of_the_model_and_the_rates_are_of_this_machine():
    model = tiny_model()
    floor = Floor.of(model)
    layer = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64  # q, k and v, o, and the three of the perceptron
    assert (floor.body, floor.head, floor.width) == (2 * layer, model.config.vocab_size * 32, 4)
    assert floor.trained == (3, 4)
    assert Floor.of(model.requires_grad_(False)).trained == (2, 3)
    assert 1e8 < floor.operations < 1e16
    assert 1e7 < floor.bytes < 1e14
