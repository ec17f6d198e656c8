"""The entropy effect of one token's update: against the change itself, and what is chosen and weighed by it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles import effect as oracle
from torch import Tensor

from klent import objectives as O
from objectives.helpers import Mutant, assert_close, mask_of, table

CASES: dict[str, list[dict[str, Any]]] = {
    "clip_cov_exact_tokens": [{"fraction": 0.3, "pool": 0.6}],
    "kl_cov_exact_tokens": [{"fraction": 0.3}],
    "steer_weight": [{}, {"lowest": 0.5, "smallest": 10.0}],
}
ORDERED = {"kl_cov_exact_tokens": "of equal effects the earlier is chosen"}
KEYS = ("logp", "entropy", "collision", "collision_logp")


def drawn_worlds(count: int, words: int, seed: int = 0) -> tuple[list[np.ndarray], list[int], list[float]]:
    """Random softmaxes, from flat to peaked, a token drawn from each, and its advantage."""
    random = np.random.default_rng(seed)
    logits = [random.normal(size=words) * random.uniform(0.5, 4.0) for _ in range(count)]
    tokens = [int(random.choice(words, p=oracle.softmax(z))) for z in logits]
    return logits, tokens, random.normal(size=count).tolist()


def numbers_of(logits: list[np.ndarray], tokens: list[int]) -> dict[str, Tensor]:
    rows = [oracle.numbers(oracle.softmax(z), token) for z, token in zip(logits, tokens, strict=True)]
    return {key: table([row[key] for row in rows]) for key in KEYS}


def effects(**changed: Any) -> Tensor:
    """Four tokens: likely and unlikely, pushed up and down; and one off the mask."""
    p = np.array([0.6, 0.3, 0.1])
    rows = [oracle.numbers(p, token) for token in (0, 2, 0, 2, 1)]
    values = {key: table([row[key] for row in rows]) for key in KEYS}
    values |= {"advantage": table([1.0, 1.0, -1.0, -2.0, math.nan]), "mask": mask_of("xxxx.")}
    return changed.pop("function", O.entropy_effect)(**values, **changed)


def test_effect_is_the_derivative_of_the_entropy() -> None:
    logits, tokens, advantage = drawn_worlds(300, 50)
    found = O.entropy_effect(
        **numbers_of(logits, tokens), advantage=table(advantage), mask=torch.ones(1, 300) > 0
    )
    pushed = zip(logits, tokens, advantage, strict=True)
    expected = [oracle.change(z, token, a, 1e-4) for z, token, a in pushed]
    assert_close(found, [expected], 1e-7)


def test_effect_table() -> None:
    """By the product rule on three words: dp = p (dz - E[dz]), dH = -sum dp log p."""
    p = np.array([0.6, 0.3, 0.1])
    expected = []
    for token, advantage in ((0, 1.0), (2, 1.0), (0, -1.0), (2, -2.0)):
        dz = advantage * (np.eye(3)[token] - p)
        dp = p * (dz - p @ dz)
        expected.append(-dp @ np.log(p))
    assert_close(effects(), [[*expected, 0.0]])
    assert expected[0] < 0 < expected[1]


def test_an_impossible_token_has_the_effect_of_what_is_taken_from_the_others() -> None:
    p = np.array([0.5, 0.5, 0.0])
    row = {key: table([value]) for key, value in oracle.numbers(p, 2).items()}
    found = O.entropy_effect(**row, advantage=table([1.0]), mask=mask_of("x"))
    assert_close(found, [[0.0]])  # the two others are alike


def test_the_exact_effect_foretells_the_change_and_the_released_forms_do_not() -> None:
    logits, tokens, advantage = drawn_worlds(400, 200)
    values = numbers_of(logits, tokens)
    pushed = zip(logits, tokens, advantage, strict=True)
    measured = torch.tensor([oracle.change(z, token, a, 1e-3) for z, token, a in pushed])
    a = table(advantage)
    surprise = -a * (values["logp"] + values["entropy"])
    exact = O.entropy_effect(**values, advantage=a, mask=torch.ones(1, 400) > 0)
    for name, predicted in {
        "exact": exact,
        "STEER": surprise * (1 - values["logp"].exp()),
        "covariance": surprise,
    }.items():
        r = float(torch.corrcoef(torch.cat([predicted, measured[None]]))[0, 1])
        right = float((predicted[0] * measured > 0).double().mean())
        assert (r > 0.99999) == (right == 1.0) == (name == "exact"), (name, r, right)


def test_kl_cov_exact_takes_the_tokens_that_spend_most() -> None:
    expected = effects()
    assert torch.equal(expected[0, :4].argsort(), torch.tensor([3, 0, 2, 1]))
    for fraction, chosen in ((0.25, "...x."), (0.5, "x..x."), (1.0, "x..x.")):  # never one that adds entropy
        assert torch.equal(effects(function=O.kl_cov_exact_tokens, fraction=fraction), mask_of(chosen))


def test_clip_cov_exact_draws_from_the_pool() -> None:
    def chosen(seed: int, **settings: float) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return effects(function=O.clip_cov_exact_tokens, generator=generator, **settings)

    assert torch.equal(chosen(0, fraction=0.5, pool=0.5), mask_of("x..x."))
    assert torch.equal(chosen(0, fraction=0.25, pool=0.25), mask_of("...x."))
    assert torch.equal(chosen(0, fraction=1.0, pool=1.0), mask_of("x..x."))
    drawn = {int(chosen(seed, fraction=0.25, pool=0.5).nonzero()[0, 1]) for seed in range(20)}
    assert drawn == {0, 3}


def test_steer_weights_agree_with_the_oracle() -> None:
    found = effects()
    for lowest, smallest in ((0.8, 0.02), (0.5, 0.02), (0.8, 5.0)):
        weight = effects(function=O.steer_weight, lowest=lowest, smallest=smallest)
        assert_close(weight[0, :4], oracle.weights(found[0, :4].numpy(), lowest, smallest))
        assert weight[0, 4] == 0
    weight = effects(function=O.steer_weight)[0, :4]
    assert float(weight.min()) == pytest.approx(0.8)
    assert int(weight.argmin()) == int(found[0, :4].abs().argmax())


def test_steer_weighs_by_the_ratio_too() -> None:
    """A token that has become twice as likely is pushed twice as hard."""
    now = effects()
    old = table([math.log(0.3), math.log(0.1), math.log(0.6), math.log(0.1), math.nan])
    weight = effects(function=O.steer_weight, logp_old=old)[0, :4]
    assert_close(weight, oracle.weights((now[0, :4] * table([2, 1, 1, 1])[0]).numpy(), 0.8, 0.02))


def _call(name: str = "kl_cov_exact_tokens", **settings: Any) -> Tensor:
    return effects(function=getattr(O, name), **settings)


REFUSED = [
    (lambda: _call(fraction=0.0), ValueError, "fraction"),
    (lambda: _call("clip_cov_exact_tokens", fraction=0.5, pool=0.2), ValueError, "pool is 0.2"),
    (lambda: _call("clip_cov_exact_tokens", fraction=2.0), ValueError, "fraction is 2.0"),
    (lambda: _call("steer_weight", lowest=0.0), ValueError, "lowest"),
    (lambda: _call("steer_weight", smallest=0.0), ValueError, "smallest"),
    (lambda: _call("steer_weight", logp_old=torch.zeros(2, 3)), ValueError, "logp_old has shape"),
]
MUTANTS = [
    Mutant("sign of the effect", "effect.py", "return -advantage *", "return advantage *", test_effect_table),
    Mutant(
        "what the others lose left out",
        "effect.py",
        "(surprise - (collision_logp + entropy * collision))",
        "(surprise)",
        test_effect_table,
    ),
    Mutant("entropy's part of it left out", "effect.py", " + entropy * collision)", ")", test_effect_table),
    Mutant("without its probability", "effect.py", "p * (logp + entropy), 0.0", "logp + entropy, 0.0",
           test_effect_table),
    Mutant(
        "0 times inf", "effect.py", "torch.where(p > 0, p * (logp + entropy), 0.0)", "p * (logp + entropy)",
        test_an_impossible_token_has_the_effect_of_what_is_taken_from_the_others,
    ),
    Mutant(
        "tokens that add entropy are drawn", "effect.py", "largest(-effect, mask & (effect < 0), share(pool",
        "largest(-effect, mask, share(pool", test_clip_cov_exact_draws_from_the_pool,
    ),
    Mutant(
        "tokens that add entropy are held", "effect.py", "largest(-effect, mask & (effect < 0), share(fraction",
        "largest(-effect, mask, share(fraction", test_kl_cov_exact_takes_the_tokens_that_spend_most,
    ),
    Mutant("the least for the most", "effect.py", "return largest(-effect, ", "return largest(effect, ",
           test_kl_cov_exact_takes_the_tokens_that_spend_most),
    Mutant("no draw", "effect.py", "largest(drawn(mask, generator), eligible", "largest(-effect, eligible",
           test_clip_cov_exact_draws_from_the_pool),
    Mutant("signed effect weighed", "effect.py", "size = effect.abs()", "size = effect",
           test_steer_weights_agree_with_the_oracle),
    Mutant("no smallest effect", "effect.py", ".clamp(min=smallest)", ".clamp(min=0.0)",
           test_steer_weights_agree_with_the_oracle),
    Mutant("ratio left out", "effect.py", "effect * (now - old).exp()", "effect",
           test_steer_weighs_by_the_ratio_too),
]  # fmt: skip
