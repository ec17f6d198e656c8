"""The law that trades entropy for reward."""

import torch

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, RealRuns, over_seeds
from klent.claims.sources import ENTROPY_ESSAY, ENTROPY_MECHANISM, READING_NOTES
from klent.claims.worlds.bandit import Run, train

_STEPS, _LR = 120, 4.0
_THIRD = _STEPS // 3


def measure() -> dict[str, Figure]:
    grpo, bonus, sharpened = (
        train(method, steps=_STEPS, lr=_LR) for method in ("GRPO", "entropy bonus", "entropy minimisation")
    )
    figures = {}
    for name, runs in (("GRPO", grpo), ("entropy bonus (control)", bonus)):
        figures[f"R² of the fit to the whole run, {name}"] = over_seeds([_r2(run) for run in runs])
        figures[f"error of the last two thirds from the first, {name}"] = over_seeds(
            [_ahead(r) for r in runs]
        )
    figures["the same for a straight line in H (control)"] = over_seeds([_ahead_linear(run) for run in grpo])
    figures["error of 'reward stays as it is' (control)"] = over_seeds([_naive(run) for run in grpo])
    figures["ceiling -a + b from the first third"] = over_seeds(
        [O.fit_reward_entropy(r.entropy[:_THIRD], r.reward[:_THIRD]).ceiling for r in grpo]
    )
    figures["reward at the end"] = over_seeds([run.reward[-1].item() for run in grpo])
    figures["reward at the end of the first third (control)"] = over_seeds(
        [run.reward[_THIRD - 1].item() for run in grpo]
    )
    for name, runs in (("GRPO", grpo), ("entropy minimisation without reward (control)", sharpened)):
        figures[f"entropy spent, {name}"] = over_seeds([(r.entropy[0] - r.entropy[-1]).item() for r in runs])
        figures[f"reward gained, {name}"] = over_seeds([(r.reward[-1] - r.reward[0]).item() for r in runs])
    return figures


def _predicted(run: Run, until: int) -> torch.Tensor:
    fit = O.fit_reward_entropy(run.entropy[:until], run.reward[:until])
    return fit.b - fit.a * run.entropy.exp()


def _r2(run: Run) -> float:
    residual = (run.reward - _predicted(run, _STEPS)).square().sum()
    return 1 - (residual / (run.reward - run.reward.mean()).square().sum()).item()


def _ahead(run: Run) -> float:
    """Root mean square error, in units of reward, on steps that the fit has not seen."""
    return (run.reward - _predicted(run, _THIRD))[_THIRD:].square().mean().sqrt().item()


def _ahead_linear(run: Run) -> float:
    """The same for R = b - a·H, which is given the same later entropies."""
    columns = torch.stack([torch.ones_like(run.entropy), run.entropy], dim=1)
    line = torch.linalg.lstsq(columns[:_THIRD], run.reward[:_THIRD].unsqueeze(1)).solution[:, 0]
    return float((run.reward - columns @ line)[_THIRD:].square().mean().sqrt())


def _naive(run: Run) -> float:
    return (run.reward[_THIRD:] - run.reward[_THIRD - 1]).square().mean().sqrt().item()


def judge(f: Figures) -> Judgement:
    r2, bonus = (f[f"R² of the fit to the whole run, {name}"] for name in ("GRPO", "entropy bonus (control)"))
    ahead = f["error of the last two thirds from the first, GRPO"]
    naive = f["error of 'reward stays as it is' (control)"]
    line = f["the same for a straight line in H (control)"]
    ceiling, end = f["ceiling -a + b from the first third"], f["reward at the end"]
    gained = f["reward gained, GRPO"]
    spent, free = (
        f[f"{what}, entropy minimisation without reward (control)"]
        for what in ("entropy spent", "reward gained")
    )
    fits = f"R² is {r2} (with an entropy bonus {bonus})"
    if r2.value < 0.8:
        return "refuted", f"{fits}: the law does not fit"
    if ahead.value > naive.value:
        return "refuted", (
            f"{fits}, but it does not predict: fitted to the first third it is off by {ahead} over the rest, "
            f"where 'reward stays as it is' is off by {naive}"
        )
    predicts = (
        f"{fits}, and, fitted to the first third and given the later entropies, it predicts the rest within "
        f"{ahead}, where a constant is off by {naive} and a straight line in H by {line}; the ceiling "
        f"predicted there is {ceiling}, the reward at the end {end}"
    )
    if free.value > 0.5 * gained.value:
        return "holds", predicts
    return "holds when", (
        f"the reward is what spends the entropy: {predicts}. Entropy buys nothing by itself: minimising it "
        f"without a reward spends {spent} nats for {free} of reward (GRPO gains {gained})"
    )


CLAIM = Claim(
    id="reward-entropy-law",
    subject="entropy",
    statement="R = -a·exp(H) + b: reward is bought with entropy, predictably from the start of a run, up to "
    "the ceiling -a + b.",
    source=f"{ENTROPY_MECHANISM}, equation 6; {ENTROPY_ESSAY.at('section 2.1')}; "
    f"{READING_NOTES.at('The Entropy Mechanism')}",
    experiment="GRPO on a bandit of 32 contexts and 20 actions whose best action is unlikely; fitted to the "
    "first third of 120 steps",
    control="entropy minimisation without a reward; an entropy bonus; the prediction that reward stays as "
    "it is; a straight line in H",
    measure=measure,
    judge=judge,
    real_runs=RealRuns(
        "entropy.md#does-the-law-predict",
        "agree",
        "the law predicts the rest of a run better than a constant where the policy learns, "
        "and nothing where it does not",
    ),
)
