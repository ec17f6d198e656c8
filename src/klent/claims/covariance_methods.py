"""Clip-Cov and KL-Cov."""

from klent.claims.bandit import Method, train
from klent.claims.claim import SEEDS, Claim, Figure, Figures, Judgement, over_seeds

_STEPS, _LR = 80, 16.0  # large steps, which spend entropy quickly
#: and what each is compared with
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
    for method, its in runs.items():
        name = method if "Cov" in method else f"{method} (control)"
        pairs = list(zip(its, plain, strict=True))
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
    meant = "entropy" if clip_cov.low is not None and clip_cov.low > 0 else "KL-Cov, and its entropy,"
    return "holds when", (
        f"only {meant} is meant: {kept}. Its reward is {reward} more, that of random tokens {random} more"
    )


CLAIM = Claim(
    id="covariance-methods",
    statement="Holding back the few tokens of highest covariance (Clip-Cov, KL-Cov) keeps entropy up and "
    "ends at a "
    "higher reward.",
    source="seeds 001 (section 2.2) and 003; The Entropy Mechanism, arXiv:2505.22617",
    experiment="the bandit of reward-entropy-law with larger steps, 80 of them, 2 % of the tokens; "
    "differences seed by "
    "seed",
    control="the same update without clipping, which both methods also drop; as many random tokens, "
    "penalised or dropped; PPO's clipping, and with an upper bound of 0.28 in place of 0.2",
    measure=measure,
    judge=judge,
)
