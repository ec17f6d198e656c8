"""Preferences by regret: PPL under its three labels, CPL, and the identity that both rest on."""

import math

import numpy as np
import pytest
import torch
from oracles import regret as oracle
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table

NAN = math.nan
LABELS = ["expected", "realised", "pseudo"]


def ppl(pair: dict[str, Tensor], label: str = "expected", **settings: float) -> Tensor:
    kl = {} if label == "pseudo" else {f"kl_{side}": pair[f"kl_{side}"] for side in ("chosen", "rejected")}
    return O.policy_labeled_preference(
        pair["logp_chosen"],
        pair["logp_rejected"],
        pair["mask_chosen"],
        pair["mask_rejected"],
        label=label,
        **kl,
        **settings,
    )


def random_pair(seed: int, lengths: tuple[int, int] = (5, 4)) -> dict[str, Tensor]:
    pair = {}
    for side, columns, offset in zip(("chosen", "rejected"), lengths, (0, 1), strict=True):
        tokens = random_tokens(2 * seed + offset, 3, columns)
        pair |= {
            f"logp_{side}": tokens["logp"],
            f"kl_{side}": tokens["entropy"],
            f"mask_{side}": tokens["mask"],
        }
    return pair


def test_policy_labeled_preference_table() -> None:
    # actions -1, -2, -4 with discount 1/2; KL 3, 2, 8 at the states. The rejected trajectory scores 0.
    # plain     -1 - 1 - 1 = -3
    # expected  -3 - (3 + 2/2 + 8/4) = -9
    # realised  -3 - (0·3 + 1·2/2 + 2·8/4) = -8
    # pseudo    (1)(-1) + (2)(-2)/2 + (3)(-4)/4 = -6
    logp, kl = table([-1.0, NAN, -2.0, -4.0]).requires_grad_(), table([3.0, NAN, 2.0, 8.0]).requires_grad_()
    zero, mask, there = table([0.0, 0.0]), mask_of("x.xx"), mask_of("xx")
    settings = {"alpha": 0.1, "gamma": 0.5}
    kls = {"kl_chosen": kl, "kl_rejected": zero}

    def loss(label: str, **more: Tensor) -> Tensor:
        return O.policy_labeled_preference(logp, zero, mask, there, label=label, **settings, **more)

    expected, realised, pseudo = loss("expected", **kls), loss("realised", **kls), loss("pseudo")
    assert_close(O.cpl(logp, zero, mask, there, **settings), [math.log1p(math.exp(0.3))])
    assert_close(expected, [math.log1p(math.exp(0.9))])
    assert_close(realised, [math.log1p(math.exp(0.8))])
    assert_close(pseudo, [math.log1p(math.exp(0.6))])
    # derivatives: -alpha·σ(-S) times 1, 1/2, 1/4, and the opposite (with its count) in the KL
    w = 0.1 / (1 + math.exp(-0.8))
    assert_close(slope(realised, logp), table([-w, 0.0, -w / 2, -w / 4]))
    assert_close(slope(realised, kl), table([0.0, 0.0, w / 2, w / 2]))
    w = 0.1 / (1 + math.exp(-0.9))
    assert_close(slope(expected, kl), table([w, 0.0, w / 2, w / 4]))
    w = 0.1 / (1 + math.exp(-0.6))
    assert_close(slope(pseudo, logp), table([-w, 0.0, -w, -0.75 * w]))


def test_rejected_weight_table() -> None:
    # S = -1 and -2, the second halved: no difference
    mask = mask_of("x")
    loss = O.cpl(table([-1.0]), table([-2.0]), mask, mask, alpha=1.0, rejected_weight=0.5)
    assert_close(loss, [math.log(2)])


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("gamma", [1.0, 0.6, 0.0])
def test_policy_labeled_preference_agrees_with_oracle_and_has_its_gradient(label: str, gamma: float) -> None:
    pair = random_pair(0)
    settings = {"alpha": 0.4, "gamma": gamma, "rejected_weight": 0.7}
    scores: dict[str, list[float]] = {}
    for side in ("chosen", "rejected"):
        rows = [
            (logp[mask].tolist(), kl[mask].tolist())
            for logp, kl, mask in zip(*(pair[f"{n}_{side}"] for n in ("logp", "kl", "mask")), strict=True)
        ]
        scores[side] = [oracle.score(*row, 0.4, gamma, label) for row in rows]
    expected = [oracle.loss(*row, 0.7) for row in zip(*scores.values(), strict=True)]
    assert_close(ppl(pair, label, **settings), expected)
    names = [f"{n}_{side}" for n in ("logp", "kl") for side in ("chosen", "rejected")]
    inputs = tuple(pair[name].requires_grad_() for name in names)
    assert torch.autograd.gradcheck(
        lambda *x: ppl({**pair, **dict(zip(names, x, strict=True))}, label, **settings), inputs
    )


def test_cpl_agrees_with_oracle_and_is_preference_without_kl() -> None:
    pair = random_pair(1)
    args = [pair[f"{n}_{side}"] for n in ("logp", "mask") for side in ("chosen", "rejected")]
    settings = {"alpha": 0.4, "gamma": 0.8, "rejected_weight": 0.5}
    scores = [
        [
            oracle.score(x[m].tolist(), [0.0] * int(m.sum()), 0.4, 0.8, "none")
            for x, m in zip(*side, strict=True)
        ]
        for side in (args[::2], args[1::2])
    ]
    expected = [oracle.loss(*row, 0.5) for row in zip(*scores, strict=True)]
    assert_close(O.cpl(*args, **settings), expected)
    zero = {f"kl_{side}": torch.zeros_like(pair[f"logp_{side}"]) for side in ("chosen", "rejected")}
    for label in ("expected", "realised"):
        assert_close(ppl({**pair, **zero}, label, **settings), expected)
    x, y = (args[i].requires_grad_() for i in (0, 1))
    assert torch.autograd.gradcheck(lambda x, y: O.cpl(x, y, *args[2:], **settings), (x, y))


def test_cpl_of_log_ratios_is_dpo() -> None:
    pair = random_pair(2, (4, 4))
    refs = [random_tokens(seed, 3, 4)["logp_ref"] for seed in (8, 9)]
    masks = pair["mask_chosen"], pair["mask_rejected"]
    logps = pair["logp_chosen"], pair["logp_rejected"]
    ratios = [x - ref for x, ref in zip(logps, refs, strict=True)]
    sums = [torch.where(m, x, 0).sum(dim=1) for x, m in zip((*logps, *refs), masks * 2, strict=True)]
    assert_close(O.cpl(*ratios, *masks, alpha=0.3), O.dpo(*sums, beta=0.3))


@pytest.mark.parametrize("label", LABELS)
def test_padding_and_order_do_not_matter_and_inputs_stay(label: str) -> None:
    pair = random_pair(3)
    before = {name: value.clone() for name, value in pair.items()}
    loss = ppl(pair, label, gamma=0.9)
    spoiled, order = {}, torch.tensor([2, 0, 1])
    for name, value in pair.items():
        mask = pair[f"mask_{name.split('_')[1]}"]
        wide = torch.zeros(3, 8, dtype=value.dtype)
        wide[:, : value.shape[1]] = value if name.startswith("mask") else torch.where(mask, value, NAN)
        spoiled[name] = wide
        if not name.startswith("mask"):
            wide[:, value.shape[1] :] = math.inf
            wide.requires_grad_()
    again = ppl(spoiled, label, gamma=0.9)
    assert_close(again, loss)
    again.sum().backward()
    assert torch.isfinite(spoiled["logp_chosen"].grad).all()
    shuffled = ppl({name: value[order] for name, value in pair.items()}, label, gamma=0.9)
    assert_close(shuffled, loss[order])
    assert all(torch.equal(pair[name], before[name]) for name in pair)


# The identity: alpha·(log π*(a|s) - F) = Q of the behaviour policy - V* -------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_score_under_the_optimal_policy_is_minus_the_regret(seed: int) -> None:
    problem = oracle.SoftProblem(seed)
    regret = problem.value[:, None] - problem.behaviour_q()
    assert (regret > 0).all()
    states, actions = np.array([[0, 2, 1], [3, 1, 0]]), np.array([[1, 0, 2], [2, 2, 0]])
    logp = torch.tensor(np.log(problem.optimal)[states, actions])
    future = torch.tensor(problem.future_kl()[states, actions])
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss = O.policy_labeled_preference(
        logp[:1],
        logp[1:],
        mask,
        mask,
        kl_chosen=future[:1],
        kl_rejected=future[1:],
        alpha=problem.alpha,
        gamma=problem.gamma,
    )
    discount = problem.gamma ** np.arange(3)
    score = -(discount * regret[states, actions]).sum(axis=1)
    assert_close(loss, [oracle.loss(score[0], score[1], 1.0)], 1e-10)
    # without the KL the score is another: what CPL takes the regret to be
    plain = O.cpl(logp[:1], logp[1:], mask, mask, alpha=problem.alpha, gamma=problem.gamma)
    assert abs(plain.item() - loss.item()) > 1e-3


def test_preferences_by_regret_leave_the_optimal_policy_at_rest() -> None:
    # two-step trajectories, each pair of them, labelled by regret: at the optimal policy the mean gradient of
    # the expected form is 0; of the realised form and of CPL it is not
    problem = oracle.SoftProblem(0, states=3, actions=2)
    mean = {label: float(_mean_gradient(problem, label).norm()) for label in ("expected", "realised", "cpl")}
    assert mean["expected"] < 1e-10
    assert mean["realised"] > 1e-3
    assert mean["cpl"] > 1e-3


def _mean_gradient(problem: oracle.SoftProblem, label: str) -> Tensor:
    """In the logits, over every pair of two-step trajectories as the behaviour policy produces them.

    F of the expected form is held at its value: only its own part of the gradient is compared.
    """
    n, k = problem.behaviour.shape
    steps = [(s, a, t, b) for s in range(n) for a in range(k) for t in range(n) for b in range(k)]
    s, a, t, b = (np.array(column) for column in zip(*steps, strict=True))
    chance = problem.behaviour[s, a] * problem.next[s, a, t] * problem.behaviour[t, b] / n
    logits = torch.tensor(np.log(problem.optimal), requires_grad=True)
    table = logits.log_softmax(dim=1)
    logp = torch.stack([table[s, a], table[t, b]], dim=1)
    regret = problem.value[:, None] - problem.behaviour_q()
    score = -(regret[s, a] + problem.gamma * regret[t, b])
    if label == "expected":
        kl = torch.tensor(np.stack([problem.future_kl()[s, a], problem.future_kl()[t, b]], axis=1))
    else:
        log_behaviour = torch.tensor(np.log(problem.behaviour))
        at = O.categorical_kl(log_behaviour, table)
        kl = torch.stack([at[s], at[t]], dim=1)
    i, j = (x.flatten() for x in np.meshgrid(np.arange(len(steps)), np.arange(len(steps)), indexing="ij"))
    weight = chance[i] * chance[j] / (1 + np.exp(score[j] - score[i]))
    mask = torch.ones(len(i), 2, dtype=torch.bool)
    settings = {"alpha": problem.alpha, "gamma": problem.gamma}
    if label == "cpl":
        loss = O.cpl(logp[i], logp[j], mask, mask, **settings)
    else:
        loss = O.policy_labeled_preference(
            logp[i], logp[j], mask, mask, kl_chosen=kl[i], kl_rejected=kl[j], label=label, **settings
        )
    return slope(torch.tensor(weight) * loss, logits)
