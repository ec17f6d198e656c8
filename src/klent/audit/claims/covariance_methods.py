"""Clip-Cov and KL-Cov."""

from klent.audit.claims.bandit import Method, train
from klent.audit.claims.claim import SEEDS, Claim, Figure, Figures, Judgement, over_seeds

_STEPS, _LR = 80, 16.0  # large steps, which spend entropy quickly
_METHODS: tuple[Method, ...] = ("Clip-Cov", "KL-Cov", "random tokens", "GRPO", "no clip")


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
    clip_cov, clip = f["entropy more than no clip, Clip-Cov"], f["entropy more than no clip, GRPO (control)"]
    assert entropy.low is not None
    assert reward.low is not None
    assert random.high is not None
    kept = (
        f"against the same update without clipping KL-Cov keeps {entropy} nats more (Clip-Cov {clip_cov}; as "
        f"many random tokens {random_entropy}; PPO's clipping alone {clip})"
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
    control="the same update without clipping, which both methods also drop; the KL-Cov penalty on as many "
    "random "
    "tokens; PPO's clipping",
    measure=measure,
    judge=judge,
)
