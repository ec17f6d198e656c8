"""What is refused, and that the message says what was wrong and what to do."""

import inspect
import math
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch

from klent import objectives as O
from klent.config.binding import hyperparameters_of
from objectives.declared import MASKS, Case, cases, functions, named, provided, with_mask

X, MASK = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
R, G = torch.zeros(4), torch.zeros(4, dtype=torch.int64)
H = torch.tensor([1.0, 2.0, 3.0])
P, XD = torch.zeros(4, 3), torch.zeros(2, 3, 4)  # full distributions; denoising steps

Call = Callable[[], Any]
PER_TOKEN = {str(case): case for case in cases(with_mask())}


def ppl(**settings: Any) -> torch.Tensor:
    return O.policy_labeled_preference(X, X, MASK, MASK, **settings)


RANGES: list[tuple[Call, str]] = [
    (lambda: O.ppo_clip(X, X, X, MASK, clip_low=1.5), "clip_low is 1.5, expected a number in [0, 1]"),
    (lambda: O.ppo_clip(X, X, X, MASK, clip_low=-0.1), "clip_low is -0.1"),
    (lambda: O.ppo_clip(X, X, X, MASK, clip_high=-0.1), "clip_high is -0.1, expected a number in [0, inf]"),
    (lambda: O.ppo_clip(X, X, X, MASK, clip_high=math.nan), "clip_high is nan"),
    (lambda: O.ppo_clip(X, X, X, MASK, dual_clip=1), "dual_clip is 1, expected a number in (1, inf]"),
    (lambda: O.ppo_clip(X, X, X, MASK, ratio="byte"), "ratio is 'byte', expected one of 'token', 'sequence'"),
    (lambda: O.cispo(X, X, X, MASK, ratio_max=0.5), "ratio_max is 0.5, expected a number in [1, inf]"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=-1), "coef is -1, expected a number in [0, inf)"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=math.inf), "coef is inf"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=1, divergence="both"), "divergence is 'both'"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=1, estimator="k4"), "estimator is 'k4', expected one of"),
    (lambda: O.kl_in_reward(X, X, MASK, coef=-1), "coef is -1"),
    (lambda: O.kl_in_reward(X, X, MASK, coef=1, estimator="k4"), "estimator is 'k4'"),
    (lambda: O.kl_estimate(X, X, estimator="k4"), "estimator is 'k4', expected one of 'k1', 'k2', 'k3'"),
    (lambda: O.entropy_loss(X, MASK, coef=math.inf), "coef is inf, expected a number in (-inf, inf)"),
    (lambda: O.high_entropy_tokens(X, MASK, fraction=0), "fraction is 0, expected a number in (0, 1]"),
    (lambda: O.high_entropy_tokens(X, MASK, fraction=20), "fraction is 20"),
    (lambda: O.group_advantage(R, G, scale="mad"), "scale is 'mad', expected one of 'std', 'none', 'mean'"),
    (lambda: O.gae(X, X, MASK, gamma=1.1), "gamma is 1.1, expected a number in [0, 1]"),
    (lambda: O.gae(X, X, MASK, lam=-1), "lam is -1"),
    (lambda: O.reward_to_go(X, MASK, gamma=2), "gamma is 2"),
    (
        lambda: O.reduce_tokens(X, MASK, over="batch"),
        "over is 'batch', expected one of 'tokens', 'sequences'",
    ),
    (lambda: O.reduce_tokens(X, MASK, over="constant"), "denominator is None, expected a number"),
    (lambda: O.reduce_tokens(X, MASK, denominator=0), "denominator is 0, expected a number in (0, inf)"),
    (
        lambda: O.reduce_tokens(X, MASK, denominator=torch.ones(2)),
        "denominator has shape [2], expected a scalar",
    ),
    (
        lambda: O.uniform_cross_entropy(X, X, X, MASK, actions=1),
        "actions is 1, expected a number in [2, inf)",
    ),
    (lambda: O.clip_cov_tokens(X, X, MASK, fraction=0), "fraction is 0, expected a number in (0, 1]"),
    (lambda: O.clip_cov_tokens(X, X, MASK, low=6), "high is 5.0, expected a number in [6, inf]"),
    (lambda: O.clip_cov_tokens(X, X, MASK, low=math.nan), "low is nan"),
    (lambda: O.kl_cov_tokens(X, X, MASK, fraction=0.2 * 100), "fraction is 20.0"),
    (lambda: O.low_entropy_tokens(X, MASK, fraction=0), "fraction is 0, expected a number in (0, 1]"),
    (lambda: O.random_tokens(MASK, fraction=20), "fraction is 20, expected a number in (0, 1]"),
    (lambda: O.entropy_shaped(X, X, X, X, MASK, alpha=-1), "alpha is -1, expected a number in [0, inf)"),
    (lambda: O.entropy_shaped(X, X, X, X, MASK, kappa=1), "kappa is 1, expected a number in (1, inf]"),
    (lambda: O.entropy_shaped(X, X, X, X, MASK, clip_low=2), "clip_low is 2"),
    (lambda: O.entropy_ratio_clip(X, X, X, X, X, MASK, low=1.1), "low is 1.1, expected a number in [0, 1]"),
    (lambda: O.entropy_ratio_clip(X, X, X, X, X, MASK, high=-1), "high is -1, expected a number in [0, inf]"),
    (lambda: O.clip_cov(X, X, X, MASK, dropped=MASK, clip_low=2), "clip_low is 2"),
    (lambda: O.kl_cov(X, X, X, MASK, penalised=MASK, coef=-1), "coef is -1, expected a number in [0, inf)"),
    (
        lambda: O.kl_cov(X, X, X, MASK, penalised=MASK, penalty="k2"),
        "penalty is 'k2', expected one of 'absolute', 'kl'",
    ),
    (lambda: O.predicted_entropy_change(X, X, step=-1), "step is -1, expected a number in [0, inf)"),
    (lambda: O.predicted_entropy_change(X, X, step=1, gradient="adam"), "gradient is 'adam'"),
    (lambda: O.importance_weight(X, X, MASK, low=1.5), "low is 1.5, expected a number in [0, 1]"),
    (lambda: O.importance_weight(X, X, MASK, high=0.5), "high is 0.5, expected a number in [1, inf]"),
    (lambda: O.importance_weight(X, X, MASK, ratio="byte"), "ratio is 'byte'"),
    (
        lambda: O.importance_weight(X, X, MASK, outside="clip"),
        "outside is 'clip', expected one of 'truncate'",
    ),
    (lambda: O.qsft_target(R, P, P, gamma=2), "gamma is 2, expected a number in [0, 1]"),
    (lambda: O.qsft_target(R, P, P, min_behaviour=1), "min_behaviour is 1, expected a number in [0, 1)"),
    (lambda: O.qsft_policy(P, P, beta=-1), "beta is -1, expected a number in [0, inf)"),
    (lambda: O.qsft_policy(P, P, beta=1, form="q"), "form is 'q', expected one of 'probability', 'ratio'"),
    (lambda: O.dpo(R, R, R, R, beta=0), "beta is 0, expected a number in (0, inf)"),
    (lambda: O.dpo(R, R, R, R, form="simpo"), "form is 'simpo', expected one of 'dpo', 'ipo'"),
    (lambda: O.dpo(R, R, R, R, label_noise=0.5), "label_noise is 0.5, expected a number in [0, 0.5)"),
    (lambda: O.dpo(R, R, R, R, form="ipo", label_noise=0.1), "Take form='dpo' for cDPO"),
    (lambda: O.bradley_terry(R, R, margin=-1), "margin is -1, expected a number in [0, inf)"),
    (lambda: O.cpl(X, X, MASK, MASK, alpha=0), "alpha is 0, expected a number in (0, inf)"),
    (lambda: O.cpl(X, X, MASK, MASK, gamma=1.1), "gamma is 1.1"),
    (lambda: O.cpl(X, X, MASK, MASK, rejected_weight=0), "rejected_weight is 0, expected a number in (0, 1]"),
    (lambda: ppl(label="random"), "label is 'random', expected one of 'expected', 'realised', 'pseudo'"),
    (lambda: ppl(), "kl_chosen is None with label='expected', expected F, the mean of the later KLs"),
    (lambda: ppl(label="realised"), "expected the KL at each state, [B, T]. Without a label for the beh"),
    (lambda: ppl(kl_chosen=X), "kl_rejected is None"),
    (lambda: ppl(kl_chosen=X, label="pseudo"), "kl_chosen is given with label='pseudo', expected None"),
    (lambda: O.empo_reward(G, G, low=-1), "low is -1, expected a number in [0, inf)"),
    (lambda: O.empo_reward(G, G, low=1, high=1), "high is 1, expected a number in (1, inf]"),
    (lambda: O.empo_reward(G, G, high=0), "high is 0, expected a number in (0, inf]"),
    (lambda: O.dpok(XD, XD, XD, XD, X, MASK, coef=-1), "coef is -1"),
    (lambda: O.ddpo(XD, XD, XD, X, X, MASK, clip_high=-1), "clip_high is -1"),
    (lambda: O.categorical_kl(P, P, unit="bit"), "unit is 'bit', expected one of 'nats', 'bits'"),
    (lambda: O.categorical_entropy(P, unit="hartleys"), "unit is 'hartleys'"),
    (lambda: O.categorical_cross_entropy(P, P, unit="shannons"), "unit is 'shannons'"),
]

SHAPES: list[tuple[Call, str]] = [
    (lambda: O.reinforce(X, X[:, :2], MASK), "advantage has shape [2, 2], expected [2, 3] as mask has"),
    (lambda: O.reinforce(X, X[:, 0], MASK), "write advantage[:, None].expand(mask.shape)"),
    (lambda: O.ppo_clip(X, X[:1], X, MASK), "logp_old has shape [1, 3]"),
    (lambda: O.cispo(X[:1], X, X, MASK), "logp has shape [1, 3]"),
    (lambda: O.cross_entropy(X[0], MASK[0]), "mask has shape [3], expected [B, T]"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=1, logp_old=X[:1]), "logp_old has shape [1, 3]"),
    (lambda: O.kl_in_reward(X, X[:1], MASK, coef=1), "logp_ref has shape [1, 3]"),
    (lambda: O.kl_estimate(X, X[:1]), "logp_ref has shape [1, 3], expected [2, 3] as logp has"),
    (lambda: O.categorical_kl(X, X[:1]), "logp_q has shape [1, 3], expected [2, 3] as logp_p has"),
    (lambda: O.token_covariance(X, X[:1], MASK), "advantage has shape [1, 3]"),
    (lambda: O.high_entropy_tokens(X[:1], MASK), "entropy has shape [1, 3]"),
    (lambda: O.entropy_loss(X[:1], MASK, coef=1), "entropy has shape [1, 3]"),
    (lambda: O.gae(X, X[:1], MASK), "values has shape [1, 3]"),
    (lambda: O.reward_to_go(X[:1], MASK), "rewards has shape [1, 3]"),
    (lambda: O.reduce_tokens(X[:1], MASK), "loss has shape [1, 3]"),
    (lambda: O.group_advantage(X, G), "rewards has shape [2, 3], expected [n]"),
    (lambda: O.group_advantage(R, G[:3]), "group has shape [3], expected [4] as rewards has"),
    (lambda: O.leave_one_out(R, G[:3]), "group has shape [3]"),
    (lambda: O.fit_reward_entropy(X, X), "entropy has shape [2, 3], expected [n]"),
    (lambda: O.fit_reward_entropy(H, H[:2]), "reward has shape [2], expected [3] as entropy has"),
    (lambda: O.fit_reward_entropy(H[:2], H[:2]), "entropy has 2 points, expected at least 3"),
    (lambda: O.fit_reward_entropy(H * math.nan, H), "not finite"),
    (lambda: O.fit_reward_entropy(H, H / 0), "not finite"),
    (lambda: O.fit_reward_entropy(torch.full((9,), 0.7), torch.arange(9.0)), "entropy is constant"),
    (lambda: O.fit_reward_entropy(torch.tensor([0.1 + 0.2, 0.3, 0.3]), H), "entropy is constant"),
    (lambda: O.weighted_cross_entropy(X, X[:1], X, MASK), "logp_dummy has shape [1, 3]"),
    (lambda: O.weighted_cross_entropy(X, X, X[:, 0], MASK), "write weight[:, None].expand(mask.shape)"),
    (lambda: O.uniform_cross_entropy(X, X[:1], X, MASK, actions=3), "logp_mean has shape [1, 3]"),
    (lambda: O.ilql_loss(X, X, X, X, X[:1], X, X, MASK), "weight has shape [1, 3]"),
    (lambda: O.observation_loss(X[:1], MASK, coef=0.1), "logp_observed has shape [1, 3]"),
    (lambda: O.clip_cov_tokens(X, X[:1], MASK), "advantage has shape [1, 3]"),
    (lambda: O.kl_cov_tokens(X[:1], X, MASK), "logp has shape [1, 3]"),
    (
        lambda: O.clip_cov(X, X, X, MASK, dropped=MASK[:1]),
        "dropped has shape [1, 3], expected [2, 3] as mask has",
    ),
    (lambda: O.clip_cov(X, X[:1], X, MASK, dropped=MASK), "logp_old has shape [1, 3]"),
    (lambda: O.kl_cov(X, X, X, MASK, penalised=MASK[:1]), "penalised has shape [1, 3]"),
    (lambda: O.kl_cov(X, X, X[:1], MASK, penalised=MASK), "advantage has shape [1, 3]"),
    (lambda: O.predicted_entropy_change(P, P[:1], step=1), "advantage has shape [1, 3]"),
    (lambda: O.importance_weight(X, X[:1], MASK), "logp_gen has shape [1, 3]"),
    (lambda: O.qsft_target(R[:2], P, P), "logp_value has shape [4, 3], expected [2, 'K']: a row of actions"),
    (lambda: O.qsft_target(R, P, P[:2]), "logp_behaviour has shape [2, 3]"),
    (lambda: O.qsft_policy(P, P[:2], beta=1), "logp_behaviour has shape [2, 3]"),
    (lambda: O.dpo(R, R[:2], R, R), "logp_rejected has shape [2], expected [4] as logp_chosen has"),
    (
        lambda: O.dpo(X, X, X, X),
        "logp_chosen has shape [2, 3], expected [B], one number per pair: sum over the tokens first",
    ),
    (lambda: O.bradley_terry(R, R[:2]), "reward_rejected has shape [2]"),
    (lambda: O.bradley_terry(R, R, margin=R[:2]), "margin has shape [2], expected [4] as reward_chosen has"),
    (lambda: O.cpl(X, X[:1], MASK, MASK[:1]), "logp_rejected has 1 rows, expected 2 as logp_chosen has"),
    (lambda: O.cpl(X, X, MASK, MASK[:, :2]), "logp_rejected has shape [2, 3], expected [2, 2] as mask has"),
    (lambda: ppl(kl_chosen=X[:1], kl_rejected=X), "kl_chosen has shape [1, 3], expected [2, 3] as mask has"),
    (lambda: O.semantic_entropy(G, G[:3]), "group has shape [3], expected [4] as cluster has"),
    (lambda: O.empo_reward(MASK.long(), G), "cluster has shape [2, 3], expected [n]: one id per completion"),
    (
        lambda: O.ddpo(X, X, X, X, X, MASK),
        "expected [2, 3, 'D'] as mask has: flatten the coordinates, sample.",
    ),
    (lambda: O.ddpo(XD[:1], XD, XD, X, X, MASK), "sample has shape [1, 3, 4]"),
    (
        lambda: O.ddpo(XD, XD[..., :2], XD, X, X, MASK),
        "mean has shape [2, 3, 2], expected one that broadcasts",
    ),
    (lambda: O.ddpo(XD, XD, XD, X[:1], X, MASK), "logp_old has shape [1, 3]"),
    (lambda: O.dpok(XD, XD, XD[..., :2], XD, X, MASK, coef=1), "mean_ref has shape [2, 3, 2]"),
    (lambda: O.dpok(XD, XD, XD, XD, X[:1], MASK, coef=1), "advantage has shape [1, 3]"),
    (
        lambda: O.gaussian_kl(X, X[:, :2], X, X),
        "std_p has shape [2, 2], expected one that broadcasts to [2, 3] as mean_p has",
    ),
    (
        lambda: O.gaussian_kl(X[0], X[0], X, X[0]),
        "mean_q has shape [2, 3], expected one that broadcasts to [3]",
    ),
    (lambda: O.gaussian_logp(R[0], R[0], R[0]), "sample has shape [], expected [..., D]: coordinates along"),
    (lambda: O.categorical_cross_entropy(P, P[:1]), "logp_q has shape [1, 3]"),
    (lambda: O.sft_logit_gradient(P, P[:1]), "logp_data has shape [1, 3], expected [4, 3] as logp has"),
    (lambda: O.reinforce_logit_gradient(P, P[:1]), "advantage has shape [1, 3]"),
]

TYPES: list[tuple[Call, str]] = [
    (
        lambda: O.cross_entropy(X, MASK.long()),
        "mask has dtype torch.int64, expected torch.bool: write mask.bool()",
    ),
    (lambda: O.cross_entropy(X, [[True] * 3] * 2), "mask is of type list, expected torch.Tensor"),
    (lambda: O.cross_entropy(X.long(), MASK), "logp has dtype torch.int64, expected floating point"),
    (lambda: O.cross_entropy(None, MASK), "logp is of type NoneType, expected torch.Tensor"),
    (lambda: O.kl_estimate(X.long(), X), "logp has dtype torch.int64"),
    (
        lambda: O.group_advantage(G, G),
        "rewards has dtype torch.int64, expected floating point: write rewards.float()",
    ),
    (lambda: O.group_advantage(R, R), "group has dtype torch.float32, expected integers"),
    (lambda: O.group_advantage(R, G.bool()), "group has dtype torch.bool, expected integers"),
    (lambda: O.leave_one_out(R, list(range(4))), "group is of type list"),
    (lambda: O.entropy_loss(X, MASK, coef=True), "coef is True, expected a number"),
    (lambda: O.entropy_loss(X, MASK, coef="0.1"), "coef is '0.1', expected a number"),
    (lambda: O.entropy_loss(X, MASK, coef=None), "coef is None, expected a number"),
    (lambda: O.fit_reward_entropy(G, G), "entropy has dtype torch.int64"),
    (lambda: O.weighted_cross_entropy(X, X, G, MASK), "weight has dtype torch.int64"),
    (lambda: O.uniform_cross_entropy(X, X, X, MASK, actions=None), "actions is None, expected a number"),
    (
        lambda: O.clip_cov(X, X, X, MASK, dropped=X),
        "dropped has dtype torch.float32, expected torch.bool: what",
    ),
    (lambda: O.clip_cov(X, X, X, MASK, dropped=None), "dropped is of type NoneType, expected torch.Tensor"),
    (lambda: O.kl_cov(X, X, X, MASK, penalised=MASK.long()), "penalised has dtype torch.int64"),
    (lambda: O.kl_cov(X, X, X, [True], penalised=MASK), "mask is of type list"),
    (lambda: O.clip_cov_tokens(X, X, MASK, low="1"), "low is '1', expected a number"),
    (lambda: O.importance_weight(X, None, MASK), "logp_gen is of type NoneType"),
    (lambda: O.qsft_target(G, P, P), "reward has dtype torch.int64"),
    (lambda: O.qsft_policy(P, P, beta="20"), "beta is '20', expected a number"),
    (lambda: O.predicted_entropy_change(P.long(), P, step=1), "logp has dtype torch.int64"),
    (lambda: O.dpo(R, R, R, G), "logp_ref_rejected has dtype torch.int64"),
    (lambda: O.bradley_terry(R, R, margin="1"), "margin is '1', expected a number"),
    (lambda: O.bradley_terry(R, R, margin=G), "margin has dtype torch.int64"),
    (lambda: O.cpl(X, None, MASK, MASK), "logp_rejected is of type NoneType"),
    (lambda: ppl(kl_chosen=X.long(), kl_rejected=X), "kl_chosen has dtype torch.int64"),
    (
        lambda: O.semantic_entropy(R, G),
        "cluster has dtype torch.float32, expected integers: one cluster id per",
    ),
    (lambda: O.empo_reward(G, R), "group has dtype torch.float32, expected integers: one group id per"),
    (lambda: O.empo_reward(G, G, low="0"), "low is '0', expected a number"),
    (lambda: O.ddpo(XD, XD.long(), XD, X, X, MASK), "mean has dtype torch.int64"),
    (lambda: O.ddpo(None, XD, XD, X, X, MASK), "sample is of type NoneType"),
    (lambda: O.gaussian_kl(X, 1.0, X, X), "std_p is of type float, expected torch.Tensor"),
    (lambda: O.gaussian_logp(X, X, X.long()), "std has dtype torch.int64"),
    (lambda: O.categorical_entropy(G), "logp has dtype torch.int64"),
    (lambda: O.sft_logit_gradient(P, None), "logp_data is of type NoneType"),
]

OWN: list[tuple[Call, type[Exception], str]] = [item for table in provided("REFUSED") for item in table]

PLACEMENTS: list[tuple[Call, list[str]]] = [
    (
        lambda: O.kl_in_loss(X, X, MASK, coef=1, estimator="k1"),
        [
            "mean gradient of k1 is zero",
            "kl_in_loss(logp, logp_ref, mask, coef=...)",
            "kl_in_reward(logp, logp_ref, mask",
        ],
    ),
    (
        lambda: O.kl_in_reward(X, X, MASK, coef=1, estimator="k2"),
        ["k2 has no restoring force near the reference", "kl_in_loss(logp, logp_ref, mask, coef=...)"],
    ),
    (
        lambda: O.kl_in_reward(X, X, MASK, coef=1, estimator="k3"),
        ["k3 has no restoring force near the reference", "kl_in_reward(logp, logp_ref, mask, coef=...)"],
    ),
    (
        lambda: O.kl_in_loss(X, X, MASK, coef=1, estimator="k3"),
        [
            "as a loss k3 follows the forward KL",
            "write divergence='forward'",
            "for reverse drop estimator",
        ],
    ),
    (
        lambda: O.kl_in_loss(X, X, MASK, coef=1, estimator="k2", divergence="forward"),
        ["as a loss k2 follows the reverse KL", "write divergence='reverse'"],
    ),
]


@pytest.mark.parametrize("name", PER_TOKEN)
def test_every_tensor_is_checked(name: str) -> None:
    case = PER_TOKEN[name]
    batch = named(case.function, case.batch(0))
    parameters = inspect.signature(case.function).parameters
    for tensor, value in batch.items():
        others = set(batch) - {tensor}
        optional = parameters[tensor].default is None
        for wrong in (value.long(),) if optional else (None, value.long()):
            with pytest.raises(TypeError, match=rf"{tensor} (is of type|has dtype)"):
                case.call({**batch, tensor: wrong})
        if value.ndim == 2 and others & set(MASKS):
            with pytest.raises(ValueError, match=r"has shape \[3, 6\], expected \[4, 6\]"):
                case.call({**batch, tensor: value[:3]})


@pytest.mark.parametrize("name", PER_TOKEN)
def test_every_setting_is_checked(name: str) -> None:
    case = PER_TOKEN[name]
    batch = case.batch(0)
    for setting, parameter in hyperparameters_of(case.function).items():
        wrong: list[Any] = ["no such", math.nan, True]
        if any(isinstance(option, str) for option in typing.get_args(parameter.annotation)):
            wrong = ["no such", 3]
        if parameter.annotation is bool:
            continue
        for value in wrong:
            with pytest.raises((TypeError, ValueError), match=rf"{setting} is "):
                Case(case.name, {**case.settings, setting: value}).call(batch)


def test_every_other_function_has_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()

    def recorded(name: str) -> Callable[..., Any]:
        function = getattr(O, name)
        return lambda *args, **kwargs: (called.add(name), function(*args, **kwargs))

    others = set(functions()) - set(with_mask())
    for name in others:
        monkeypatch.setattr(O, name, recorded(name))
    for call, *_ in [*RANGES, *SHAPES, *TYPES, *OWN]:
        with pytest.raises((TypeError, ValueError)):
            call()
    assert not others - called, (
        f"nothing shows what {', '.join(sorted(others - called))} refuses: the function's own test file must "
        'provide REFUSED = [(lambda: O.f(...), ValueError, "part of the message")]'
    )


def test_refusals_of_the_functions_own_test_files() -> None:
    for call, error, message in OWN:
        with pytest.raises(error) as caught:
            call()
        assert message in str(caught.value)


@pytest.mark.parametrize(("call", "message"), RANGES + SHAPES)
def test_wrong_values_and_shapes(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=" ") as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize(("call", "message"), TYPES)
def test_wrong_types(call: Call, message: str) -> None:
    with pytest.raises(TypeError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize(("call", "messages"), PLACEMENTS)
def test_wrong_placements_say_why_and_what_is_right(call: Call, messages: list[str]) -> None:
    with pytest.raises(ValueError, match=" ") as error:
        call()
    for message in messages:
        assert message in str(error.value)


def test_ends_of_ranges_are_allowed() -> None:
    O.ppo_clip(X, X, X, MASK, clip_low=0, clip_high=0, dual_clip=math.inf)
    O.ppo_clip(X, X, X, MASK, clip_low=1, clip_high=math.inf)
    O.cispo(X, X, X, MASK, ratio_max=1)
    O.cispo(X, X, X, MASK, ratio_max=math.inf)
    O.kl_in_loss(X, X, MASK, coef=0, divergence="forward", estimator="k3")
    O.kl_in_loss(X, X, MASK, coef=0, divergence="reverse", estimator="k2")
    O.kl_in_reward(X, X, MASK, coef=0, estimator="k1")
    O.high_entropy_tokens(X, MASK, fraction=1)
    O.gae(X, X, MASK, gamma=0, lam=0)
    O.clip_cov_tokens(X, X, MASK, fraction=1, low=-math.inf, high=math.inf)
    O.clip_cov_tokens(X, X, MASK, low=2, high=2)
    O.kl_cov(X, X, X, MASK, penalised=MASK, coef=0)
    O.importance_weight(X, X, MASK, low=0, high=1)
    O.importance_weight(X, X, MASK, low=1, high=math.inf, outside="drop")
    O.uniform_cross_entropy(X, X, X, MASK, actions=2)
    O.qsft_target(R, P, P, gamma=0, min_behaviour=0)
    O.qsft_policy(P, P, beta=0)
    O.dpo(R, R, R, R, label_noise=0, form="ipo")
    O.bradley_terry(R, R, margin=0)
    O.cpl(X, X, MASK, MASK, gamma=0, rejected_weight=1)
    O.empo_reward(G, G, low=0, high=math.inf)
    O.dpok(XD, XD, XD, XD + 1, X, MASK, coef=0)
    O.predicted_entropy_change(P, P, step=0)


@pytest.mark.parametrize("function", [O.kl_in_loss, O.kl_in_reward])
def test_only_an_estimator_is_answered(function: Call) -> None:
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'coeff'"):
        function(X, X, MASK, coef=1, coeff=2)
    assert "estimator" not in hyperparameters_of(function)
