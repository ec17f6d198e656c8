"""The choices that others are compared with: the surest tokens, and random ones."""

import math

import pytest
import torch
from oracles import entropy as oracle

from klent import objectives as O
from objectives.helpers import mask_of, random_tokens, table

CASES = {"low_entropy_tokens": [{"fraction": 0.7}], "random_tokens": [{"fraction": 0.3}]}

NAN = math.nan


def test_low_entropy_tokens_table() -> None:
    # 5 tokens on the mask; ⌈0.2·5⌉ = 1, ⌈0.4·5⌉ = 2, ⌈0.41·5⌉ = 3; the NaN and the 0 are off it
    entropy = table([0.1, 2.0, 0.3], [1.5, 0.2, 0.0], [NAN, NAN, NAN])
    mask = mask_of("xxx", "xx.", "...")
    assert torch.equal(O.low_entropy_tokens(entropy, mask, fraction=0.2), mask_of("x..", "...", "..."))
    assert torch.equal(O.low_entropy_tokens(entropy, mask, fraction=0.4), mask_of("x..", ".x.", "..."))
    assert torch.equal(O.low_entropy_tokens(entropy, mask, fraction=0.41), mask_of("x.x", ".x.", "..."))
    assert torch.equal(O.low_entropy_tokens(entropy, mask), mask_of("x.x", "xx.", "..."))
    assert torch.equal(O.low_entropy_tokens(entropy * 0, mask, fraction=0.4), mask_of("xx.", "...", "..."))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", ["0.8", "0.07", "1"])
def test_low_entropy_tokens_are_the_high_ones_of_minus_entropy(seed: int, fraction: str) -> None:
    tokens = random_tokens(seed)
    chosen = O.low_entropy_tokens(tokens["entropy"], tokens["mask"], fraction=float(fraction))
    expected = oracle.high_entropy_tokens(-tokens["entropy"].numpy(), tokens["mask"].numpy(), fraction)
    assert torch.equal(chosen, torch.tensor(expected))


def test_the_two_sides_share_at_most_one_token() -> None:
    for seed in range(9):
        tokens = random_tokens(seed)
        entropy, mask = tokens["entropy"], tokens["mask"]
        high = O.high_entropy_tokens(entropy, mask, fraction=0.2)
        low = O.low_entropy_tokens(entropy, mask, fraction=0.8)
        assert torch.equal(high | low, mask)
        assert int((high & low).sum()) == (0 if int(mask.sum()) % 5 == 0 else 1)


def test_random_tokens_are_as_many_as_asked_and_drawn_evenly() -> None:
    mask = random_tokens(0, 8, 8)["mask"]
    generator = torch.Generator().manual_seed(0)
    draws, count = 2000, math.ceil(0.3 * int(mask.sum()))
    hits = torch.zeros(8, 8)
    for _ in range(draws):
        chosen = O.random_tokens(mask, fraction=0.3, generator=generator)
        assert chosen.sum() == count
        hits += chosen
    assert not hits[~mask].any()
    rate = count / int(mask.sum())
    spread = math.sqrt(rate * (1 - rate) / draws)
    assert (hits[mask] / draws - rate).abs().max() < 5 * spread


def test_random_tokens_follow_their_generator() -> None:
    mask = random_tokens(0, 8, 8)["mask"]

    def chosen(seed: int) -> torch.Tensor:
        return O.random_tokens(mask, fraction=0.3, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(chosen(0), chosen(0))
    assert not torch.equal(chosen(0), chosen(1))
    assert torch.equal(O.random_tokens(mask, fraction=1), mask)
    assert not O.random_tokens(mask & False, fraction=1).any()
