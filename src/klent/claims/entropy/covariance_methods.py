"""Clip-Cov and KL-Cov."""

from klent.claims.claim import Claim, Figure, Figures, Judgement, RealRuns, over_seeds
from klent.claims.sources import ENTROPY_ESSAY, ENTROPY_MECHANISM, READING_NOTES
from klent.claims.worlds.bandit import Method, Run, train

_STEPS, _LR = 80, 16.0  # large steps, which spend entropy quickly
#: the paper's baseline, and the update without its clipping, which both methods drop
_BASELINES: dict[Method, str] = {"GRPO": "GRPO with PPO's clip", "no clip": "no clip"}
#: the two methods, and what they are compared with
_METHODS: tuple[Method, ...] = (
    "Clip-Cov",
    "random tokens dropped",
    "KL-Cov",
    "random tokens",
    "wider clip",
    "no clip",
)


def measure() -> dict[str, Figure]:
    runs = {m: train(m, steps=_STEPS, lr=_LR) for m in ("GRPO", *_METHODS)}
    figures = {}
    for base, base_name in _BASELINES.items():
        for what in ("entropy", "reward"):
            ends = [_end(run, what) for run in runs[base]]
            figures[f"{what} at the end, {base_name} (control)"] = over_seeds(ends)
        for method in _METHODS:
            if method == base:
                continue
            for what in ("entropy", "reward"):
                differences = [
                    _end(run, what) - _end(plain, what)
                    for run, plain in zip(runs[method], runs[base], strict=True)
                ]
                figures[_name(what, base, method)] = over_seeds(differences)
    return figures


def _end(run: Run, what: str) -> float:
    return (run.entropy if what == "entropy" else run.reward)[-1].item()


def _name(what: str, base: Method, method: Method) -> str:
    return f"{what} more than {_BASELINES[base]}, {method}{'' if 'Cov' in method else ' (control)'}"


def judge(f: Figures) -> Judgement:
    """Against the paper's baseline; what the comparison without a clip adds is said beside it."""
    gains = {
        method: (f[_name("entropy", "GRPO", method)], f[_name("reward", "GRPO", method)])
        for method in ("KL-Cov", "Clip-Cov")
    }
    plain = {
        method: (f[_name("entropy", "no clip", method)], f[_name("reward", "no clip", method)])
        for method in ("KL-Cov", "random tokens", "Clip-Cov", "random tokens dropped")
    }
    clip_entropy = f[_name("entropy", "GRPO", "no clip")]
    numbers = "against GRPO with PPO's clip, the paper's baseline, " + " and ".join(
        f"{method} ends with {entropy} nats of entropy and {reward} of reward more"
        for method, (entropy, reward) in gains.items()
    )
    alone = (
        f"PPO's clip, which both methods drop, keeps entropy up by itself (without it {clip_entropy} nats "
        f"more): against no clip KL-Cov keeps {plain['KL-Cov'][0]} nats more and gains {plain['KL-Cov'][1]}, "
        f"as many random tokens {plain['random tokens'][0]} and {plain['random tokens'][1]}; Clip-Cov "
        f"{plain['Clip-Cov'][0]} nats, as many random tokens {plain['random tokens dropped'][0]}"
    )
    entropy_up, reward_up = ([_above(pair[i]) for pair in gains.values()] for i in (0, 1))
    if all(entropy_up) and all(reward_up):
        return "holds", numbers
    if any(up and more for up, more in zip(entropy_up, reward_up, strict=True)):
        return "holds when", f"limited to one of the two: {numbers}. {alone}"
    return "refuted", f"{numbers}. {alone}"


def _above(figure: Figure) -> bool:
    """Whether the whole interval is above 0."""
    return figure.low is not None and figure.low > 0


CLAIM = Claim(
    id="covariance-methods",
    subject="entropy",
    statement="Holding back the few tokens of highest covariance (Clip-Cov, KL-Cov) keeps entropy up and "
    "ends at a higher reward.",
    source=f"{ENTROPY_MECHANISM}; {ENTROPY_ESSAY.at('section 2.2')}; "
    f"{READING_NOTES.at('The Entropy Mechanism')}",
    experiment="the bandit of reward-entropy-law with larger steps, 80 of them, 2 % of the tokens; "
    "differences from GRPO with PPO's clip, the paper's baseline, seed by seed",
    control="the same update without clipping, which both methods also drop; as many random tokens, "
    "penalised or dropped; PPO's clip with an upper bound of 0.28 in place of 0.2",
    measure=measure,
    judge=judge,
    real_runs=RealRuns(
        "entropy.md#nine-arms-on-one-budget",
        "agree",
        "neither method ended with more entropy than GRPO with PPO's clip, and no difference "
        "in reward could be told",
    ),
)
