"""KL and entropy of whole sequences: exact on- and off-policy, by enumeration of 27 sequences."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import sequence as oracle
from oracles import world
from torch import Tensor

from klent import objectives as O
from klent.objectives import TokenLoss
from objectives.helpers import Mutant, assert_close, mask_of, random_tokens, slope, table

CASES = {
    "sequence_kl_loss": [{"coef": 0.3}, {"coef": 1.0, "weight_max": 1.2}],
    "sequence_entropy_loss": [{"coef": -0.1}, {"coef": 1.0, "weight_max": 1.2}],
}
IN_ORDER = dict.fromkeys(CASES, "a token answers for those after it")

POLICY, REFERENCE, SAMPLER = world.policy(0), world.policy(1), world.policy(2)
LOGP_GEN = torch.tensor(world.token_logp(SAMPLER))
ALL = torch.ones(27, 3, dtype=torch.bool)


def sequence_entropy(logits: np.ndarray) -> float:
    p = world.sequence_probability(logits)
    return float(-(p * np.log(p)).sum())


TRUE = {
    "kl": world.gradient(lambda z: world.sequence_kl(z, REFERENCE), POLICY),
    "entropy": world.gradient(sequence_entropy, POLICY),
}
WHAT = ("kl", "entropy")


def loss_of(what: str) -> Callable[..., TokenLoss]:
    """Looked up when it is called, so that a mutant may stand in for it."""
    return O.sequence_kl_loss if what == "kl" else O.sequence_entropy_loss


def streams(logits: Tensor) -> dict[str, Tensor]:
    """Of every sequence: log-probabilities, KLs and entropies of the policy at its tokens, ``[27, 3]``."""
    log_p = logits.log_softmax(dim=1)
    log_q = torch.tensor(REFERENCE).log_softmax(dim=1)
    rows = torch.tensor(world.ROWS)
    return {
        "logp": log_p[rows, torch.tensor(world.SEQUENCES)],
        "kl": (log_p.exp() * (log_p - log_q)).sum(dim=1)[rows],
        "entropy": -(log_p.exp() * log_p).sum(dim=1)[rows],
    }


def mean_gradient(what: str, sampler: np.ndarray, **settings: object) -> Tensor:
    """Mean over the sampler's sequences of the gradient, in the policy's logits, of the summed loss."""
    logits = torch.tensor(POLICY, requires_grad=True)
    own = streams(logits)
    chance = torch.tensor(world.sequence_probability(sampler))
    loss = loss_of(what)(own["logp"], own[what], ALL, coef=1.0, **settings).loss
    return slope(chance @ loss.sum(dim=1), logits)


def off(gradient: Tensor, what: str) -> float:
    return float(np.linalg.norm(gradient.numpy() - TRUE[what]) / np.linalg.norm(TRUE[what]))


@pytest.mark.parametrize("what", WHAT)
def test_exact_for_sequences_on_policy(what: str) -> None:
    assert off(mean_gradient(what, POLICY), what) < 1e-9


@pytest.mark.parametrize("what", WHAT)
def test_exact_for_sequences_off_policy(what: str) -> None:
    assert off(mean_gradient(what, SAMPLER, logp_gen=LOGP_GEN), what) < 1e-9
    assert off(mean_gradient(what, SAMPLER), what) > 0.1  # as if the policy had sampled: it is not


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("weight_max", [None, 1.1])
def test_a_baseline_changes_no_expectation(what: str, weight_max: float | None) -> None:
    """Any function of the prefix, with bounded weights too; one that sees the token itself does."""
    settings = {"logp_gen": LOGP_GEN, "weight_max": weight_max}
    plain = mean_gradient(what, SAMPLER, **settings)
    of_prefix = torch.tensor(np.random.default_rng(7).normal(size=len(world.PREFIXES)))[world.ROWS]
    assert_close(mean_gradient(what, SAMPLER, baseline=of_prefix, **settings), plain, 1e-10)
    of_token = torch.tensor(world.SEQUENCES, dtype=torch.float64)
    assert (mean_gradient(what, SAMPLER, baseline=of_token, **settings) - plain).norm() > 0.05


@pytest.mark.parametrize("what", WHAT)
def test_leave_one_out_changes_no_expectation(what: str) -> None:
    """Over all 27 x 27 pairs of completions as groups of two, off-policy, the mean stays exact."""
    first, second = (i.flatten() for i in torch.meshgrid(torch.arange(27), torch.arange(27), indexing="ij"))
    chance = torch.tensor(world.sequence_probability(SAMPLER))
    weight = chance[first] * chance[second]

    def gradients(group: Tensor) -> Tensor:
        logits = torch.tensor(POLICY, requires_grad=True)
        own = streams(logits)
        index = torch.stack([first, second], dim=1).flatten()
        pairs = [own["logp"][index], own[what][index]]
        loss = loss_of(what)(
            *pairs,
            torch.ones(len(index), 3, dtype=torch.bool),
            coef=1.0,
            logp_gen=LOGP_GEN[index],
            group=group,
        ).loss
        per_pair = loss.sum(dim=1).view(-1, 2).mean(dim=1)
        return torch.stack([slope(pair, logits).flatten() for pair in per_pair])

    number = torch.arange(len(first)).repeat_interleave(2)
    alone, together = gradients(torch.arange(2 * len(first))), gradients(number)
    means = [weight @ g for g in (alone, together)]
    assert_close(means[0], TRUE[what].flatten(), 1e-8)
    assert_close(means[1], TRUE[what].flatten(), 1e-8)
    assert (alone - together).norm() > 0.1


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("sampler", ["on", "off"])
def test_the_expected_future_as_a_baseline_lowers_the_variance(what: str, sampler: str) -> None:
    """The policy's mean over a completion's possible futures, given what stands before the token."""
    chance = torch.tensor(world.sequence_probability(POLICY))
    own = streams(torch.tensor(POLICY))
    future = own[what].flip(1).cumsum(1).flip(1) - own[what]
    at = torch.tensor(world.ROWS)
    count = len(world.PREFIXES)
    mass = torch.zeros(count, dtype=torch.float64).index_add(0, at.flatten(), chance.repeat_interleave(3))
    paid = torch.zeros(count, dtype=torch.float64).index_add(
        0, at.flatten(), (chance[:, None] * future).flatten()
    )

    samples = POLICY if sampler == "on" else SAMPLER
    often, gen = torch.tensor(world.sequence_probability(samples)), torch.tensor(world.token_logp(samples))

    def spread(baseline: Tensor | None) -> float:
        logits = torch.tensor(POLICY, requires_grad=True)
        numbers = streams(logits)
        settings = {"logp_gen": gen, "baseline": baseline}
        loss = loss_of(what)(numbers["logp"], numbers[what], ALL, coef=1.0, **settings).loss
        each = torch.stack([slope(row, logits).flatten() for row in loss.sum(dim=1)])
        return float(often @ (each - often @ each).square().sum(dim=1))

    assert spread((paid / mass)[at]) < (0.8 if sampler == "on" else 0.55) * spread(None)


def test_value_is_the_divergence_between_sequences() -> None:
    chance = torch.tensor(world.sequence_probability(SAMPLER))
    own = streams(torch.tensor(POLICY))
    out = O.sequence_kl_loss(own["logp"], own["kl"], ALL, coef=2.0, logp_gen=LOGP_GEN)
    assert float(chance @ out.loss.sum(dim=1)) == pytest.approx(2 * world.sequence_kl(POLICY, REFERENCE))


def test_table() -> None:
    """Ratios 2 and 1/2 on the way: weights 1, 2, 1; the first token pays 2·3 + 1·5, the second 1·5."""
    logp = table([math.log(0.4), math.log(0.2), -1.0, 9.0]).requires_grad_()
    logp_gen = table([math.log(0.2), math.log(0.4), -2.0, math.nan])
    kl = table([1.0, 3.0, 5.0, math.nan]).requires_grad_()
    mask = mask_of("xxx.")
    out = O.sequence_kl_loss(logp, kl, mask, coef=10.0, logp_gen=logp_gen)
    assert_close(out.loss, table([10.0, 60.0, 50.0, 0.0]))
    assert_close(slope(out.loss, logp), table([110.0, 50.0, 0.0, 0.0]))
    assert_close(slope(out.loss, kl), table([10.0, 20.0, 10.0, 0.0]))
    assert [
        float(a / b)
        for a, b in (out.metrics[k] for k in ("sequence_kl", "prefix_weight", "prefix_weight_squared"))
    ] == (pytest.approx([12.0, 1.0, 1.0]))
    assert float(out.metrics["chi2"][0]) == pytest.approx(3 - 0.75 + math.expm1(2.0))
    bounded = O.sequence_kl_loss(logp, kl, mask, coef=10.0, logp_gen=logp_gen, weight_max=1.5)
    assert_close(bounded.loss, table([10.0, 45.0, 50.0, 0.0]))
    # the baseline's weight is the prefix's times the token's own ratio: 2, 1, e. What the first token answers for,
    # 6 + 5, gains 2·(1 - 1/2)·1 at the second and loses (e - 1)·1 at the third
    b = table([1.0, 1.0, 1.0, math.nan])
    based = O.sequence_kl_loss(logp, kl, mask, coef=10.0, logp_gen=logp_gen, baseline=b)
    assert_close(slope(based.loss, logp), table([110 - 10 * math.e, 50 - 10 * math.e, -10 * math.e, 0.0]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weight_max", [None, 1.3])
@pytest.mark.parametrize("based", [False, True])
def test_slopes_agree_with_the_oracle(seed: int, weight_max: float | None, based: bool) -> None:
    tokens = random_tokens(seed)
    logp, kl = tokens["logp"].requires_grad_(), tokens["entropy"].requires_grad_()
    baseline = tokens["advantage"] if based else None
    settings = {"logp_gen": tokens["logp_old"], "weight_max": weight_max, "baseline": baseline}
    out = O.sequence_kl_loss(logp, kl, tokens["mask"], coef=1.0, **settings)
    arrays = [tokens[name].detach().numpy() for name in ("logp", "entropy", "mask", "logp_old")]
    expected = oracle.slopes(*arrays, None if baseline is None else baseline.numpy(), weight_max or math.inf)
    assert_close(slope(out.loss, logp), expected[0])
    assert_close(slope(out.loss, kl), expected[1])


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_agrees_with_the_oracle(seed: int) -> None:
    tokens, group = random_tokens(seed, rows=6, columns=5), [4, 4, 9, 4, 9, 9]
    baseline = torch.tensor(oracle.others(tokens["entropy"].numpy(), tokens["mask"].numpy(), group))
    logp = tokens["logp"].requires_grad_()
    both = [
        slope(
            O.sequence_kl_loss(
                logp,
                *(tokens[k] for k in ("entropy", "mask")),
                coef=1.0,
                logp_gen=tokens["logp_old"],
                **extra,
            ).loss,
            logp,
        )
        for extra in ({"group": torch.tensor(group)}, {"baseline": baseline})
    ]
    assert_close(both[0], both[1])


def test_rows_that_are_alone_have_no_baseline() -> None:
    tokens = random_tokens(0)
    logp = tokens["logp"].requires_grad_()
    args = (logp, tokens["entropy"], tokens["mask"])
    alone = O.sequence_entropy_loss(*args, coef=1.0, group=torch.arange(4)).loss
    assert_close(slope(alone, logp), slope(O.sequence_entropy_loss(*args, coef=1.0).loss, logp))


def test_long_completions_far_off_policy_stay_finite_with_a_bound() -> None:
    logp = torch.full((2, 4000), -0.1, requires_grad=True)
    kl, gen = torch.full((2, 4000), 0.01), torch.full((2, 4000), -0.6)
    mask = torch.ones(2, 4000, dtype=torch.bool)
    out = O.sequence_kl_loss(logp, kl, mask, coef=1.0, logp_gen=gen, weight_max=2.0)
    assert out.loss.isfinite().all()
    assert slope(out.loss, logp).isfinite().all()


REFUSED = [
    (lambda: _call(coef=-1.0), ValueError, "coef"),
    (lambda: _call(weight_max=0.5), ValueError, "weight_max"),
    (lambda: _call(group=torch.zeros(3, dtype=torch.long)), ValueError, "group has shape"),
    (lambda: _call(group=torch.zeros(1)), TypeError, "group"),
    (lambda: _call(baseline=torch.zeros(2)), ValueError, "baseline"),
    (lambda: _call(logp_gen=torch.zeros(2)), ValueError, "logp_gen"),
]


def _call(**settings: object) -> object:
    one = torch.zeros(1, 2)
    return O.sequence_kl_loss(one, one, one.bool(), **{"coef": 1.0, **settings})


MUTANTS = [
    Mutant(
        "the token's own ratio in its weight",
        "sequence.py",
        "weight = (log_after - log_ratio).clamp",
        "weight = log_after.clamp",
        lambda: test_table(),  # in expectation it changes nothing: it is noise
    ),
    Mutant(
        "a token pays for itself",
        "sequence.py",
        ".flip(1) - values",
        ".flip(1)",
        lambda: test_table(),  # noise again: the mean score of a token is 0
    ),
    Mutant(
        "the baseline weighted as the prefix",
        "sequence.py",
        "after = weight * log_ratio.exp()",
        "after = weight",
        lambda: test_a_baseline_changes_no_expectation("kl", None),
    ),
    Mutant(
        "the future's weights differentiated",
        "sequence.py",
        "log_ratio = logp.detach() - logp_gen",
        "log_ratio = logp - logp_gen",
        lambda: test_exact_for_sequences_off_policy("entropy"),
    ),
    Mutant(
        "a row in its own baseline",
        "sequence.py",
        "[index] - values",
        "[index]",
        lambda: test_leave_one_out_agrees_with_the_oracle(0),
    ),
    Mutant(
        "later ratios left in the noise",
        "sequence.py",
        "paid - (after - weight) * baseline",
        "paid",
        lambda: test_the_expected_future_as_a_baseline_lowers_the_variance("kl", "off"),
    ),
    Mutant(
        "a bonus taken for a penalty",
        "sequence.py",
        '"entropy", entropy, logp_gen',
        '"entropy", -entropy, logp_gen',
        lambda: test_exact_for_sequences_on_policy("entropy"),
    ),
    Mutant(
        "weights unbounded",
        "sequence.py",
        ".clamp(max=bound)",
        "",
        lambda: test_table(),
    ),
]
