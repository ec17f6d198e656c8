"""Clip-Cov and KL-Cov."""

from klent.claims.claim import SEEDS, Claim, Figure, Figures, Judgement, over_seeds
from klent.claims.sources import ENTROPY_ESSAY, ENTROPY_MECHANISM, READING_NOTES
from klent.claims.worlds.bandit import Method, train

_STEPS, _LR = 80, 16.0  # large steps, which spend entropy quickly
#: the two methods, and what they are compared with
_METHODS: tuple[Method, ...] = (
    "Clip-Cov",
    "random tokens dropped",
    "KL-Cov",
    "random tokens",
    "GRPO",
    "wider clip",
    "no clip",
)


def measure() -> dict[str, Figure]:
    runs = {m: [train(m, seed, steps=_STEPS, lr=_LR) for seed in SEEDS] for m in _METHODS}
    plain = runs.pop("no clip")
    figures = {
        "entropy at the end, no clip (control)": over_seeds([run.entropy[-1].item() for run in plain]),
        "reward at the end, no clip (control)": over_seeds([run.reward[-1].item() for run in plain]),
    }
    for method, method_runs in runs.items():
        name = method if "Cov" in method else f"{method} (control)"
        pairs = list(zip(method_runs, plain, strict=True))
        figures[f"entropy more than no clip, {name}"] = over_seeds(
            [(run.entropy[-1] - base.entropy[-1]).item() for run, base in pairs]
        )
        figures[f"reward more than no clip, {name}"] = over_seeds(
            [(run.reward[-1] - base.reward[-1]).item() for run, base in pairs]
        )
    return figures


def judge(f: Figures) -> Judgement:
    entropy, reward = (f[f"{what} more than no clip, KL-Cov"] for what in ("entropy", "reward"))
    random_entropy, random = (
        f[f"{what} more than no clip, random tokens (control)"] for what in ("entropy", "reward")
    )
    clip_cov, dropped, clip, wider = (
        f[f"entropy more than no clip, {name}"]
        for name in ("Clip-Cov", "random tokens dropped (control)", "GRPO (control)", "wider clip (control)")
    )
    assert entropy.low is not None
    assert reward.low is not None
    assert random.high is not None
    kept = (
        f"against the same update without clipping KL-Cov keeps {entropy} nats more, as many random tokens "
        f"{random_entropy}; Clip-Cov {clip_cov}, as many random tokens {dropped}; PPO's clipping alone "
        f"{clip}, with a wider upper bound {wider}"
    )
    if entropy.low <= 0:
        return "refuted", kept
    if reward.low > random.high:
        return "holds", f"{kept} and gains {reward}, random tokens {random}"
    part = "to entropy" if clip_cov.low is not None and clip_cov.low > 0 else "to KL-Cov, and to its entropy"
    return "holds when", (
        f"the claim is limited {part}: {kept}. Its reward is {reward} more, that of random tokens {random} "
        "more"
    )


CLAIM = Claim(
    id="covariance-methods",
    subject="entropy",
    statement="Holding back the few tokens of highest covariance (Clip-Cov, KL-Cov) keeps entropy up and "
    "ends at a higher reward.",
    source=f"{ENTROPY_MECHANISM}; {ENTROPY_ESSAY.at('section 2.2')}; "
    f"{READING_NOTES.at('The Entropy Mechanism')}",
    experiment="the bandit of reward-entropy-law with larger steps, 80 of them, 2 % of the tokens; "
    "differences seed by seed",
    control="the same update without clipping, which both methods also drop; as many random tokens, "
    "penalised or dropped; PPO's clipping, also with an upper bound of 0.28 in place of 0.2",
    measure=measure,
    judge=judge,
)
