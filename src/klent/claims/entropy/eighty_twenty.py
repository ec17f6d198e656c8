"""Training on the high-entropy tokens alone."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import SEEDS, Claim, Figure, Figures, Judgement, RealRuns, over_seeds
from klent.claims.sources import EIGHTY_TWENTY, ENTROPY_ESSAY
from klent.claims.worlds.simplex import draw

_PROMPTS, _GROUP, _LENGTH, _SYMBOLS = 8, 16, 10, 4
_DECISIONS = (3, 7)  # the other positions are filler
_STEPS, _LR = 60, 24.0
_ARMS = ("all", "top 20 %", "bottom 80 %", "random 20 %")


def measure() -> dict[str, Figure]:
    figures = {}
    start = [_start(seed) for seed in SEEDS]
    figures["reward before"] = over_seeds([_reward(logits) for logits in start])
    for arm in _ARMS:
        label = arm if arm in ("all", "top 20 %") else f"{arm} (control)"
        figures[f"reward after, {label}"] = over_seeds([_train(arm, seed, per_chosen=True) for seed in SEEDS])
    for arm in _ARMS[1:]:
        label = arm if arm == "top 20 %" else f"{arm} (control)"
        figures[f"reward after, divided by all tokens, {label}"] = over_seeds(
            [_train(arm, seed, per_chosen=False) for seed in SEEDS]
        )
    figures["reward after, all with five times the step (control)"] = over_seeds(
        [_train("all", seed, per_chosen=True, lr=5 * _LR) for seed in SEEDS]
    )
    return figures


def _start(seed: int) -> Tensor:
    """Symbol 0 is right everywhere: likely (0.97) on filler, one of four at the decisions."""
    generator = torch.Generator().manual_seed(seed)
    logits = 0.3 * torch.randn(_PROMPTS, _LENGTH, _SYMBOLS, generator=generator, dtype=torch.float64)
    filler = torch.tensor([t not in _DECISIONS for t in range(_LENGTH)])
    logits[:, filler, 0] += 4.5
    return logits


def _reward(logits: Tensor) -> float:
    """Chance that every symbol is right, exactly."""
    return logits.softmax(-1)[..., 0].prod(1).mean().item()


def _train(arm: str, seed: int, *, per_chosen: bool, lr: float = _LR) -> float:
    generator = torch.Generator().manual_seed(100 + seed)
    logits = _start(seed)
    prompt = torch.arange(_PROMPTS).repeat_interleave(_GROUP)
    position = torch.arange(_LENGTH).expand(len(prompt), _LENGTH)
    mask = torch.ones(position.shape, dtype=torch.bool)
    for _ in range(_STEPS):
        logp = logits.log_softmax(-1)
        p = logp.exp()
        tokens = draw(p[prompt], generator)
        reward = (tokens == 0).all(1).double()
        advantage = O.group_advantage(reward, prompt, scale="none").unsqueeze(1).expand(tokens.shape)
        chosen = _choose(arm, O.categorical_entropy(logp)[prompt], mask, generator)
        index = (prompt.unsqueeze(1), position, tokens)
        sampled = logp[index].requires_grad_()
        loss = O.reinforce(sampled, advantage, chosen).loss
        total = O.reduce_tokens(loss, chosen, denominator=None if per_chosen else float(mask.sum()))
        (slope,) = torch.autograd.grad(total, sampled)
        step = torch.zeros_like(logits).index_put_(index, slope, accumulate=True)
        logits = logits - lr * (step - step.sum(-1, keepdim=True) * p)
    return _reward(logits)


def _choose(arm: str, entropy: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    # drawn in every arm, so that all arms see the same samples
    random = torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    if arm == "random 20 %":
        return O.high_entropy_tokens(random, mask, fraction=0.2)
    top = O.high_entropy_tokens(entropy, mask, fraction=0.2)
    return {"all": mask, "top 20 %": top, "bottom 80 %": mask & ~top}[arm]


def judge(f: Figures) -> Judgement:
    top, everything = f["reward after, top 20 %"], f["reward after, all"]
    bottom, random = f["reward after, bottom 80 % (control)"], f["reward after, random 20 % (control)"]
    longer = f["reward after, all with five times the step (control)"]
    top_same = f["reward after, divided by all tokens, top 20 %"]
    random_same = f["reward after, divided by all tokens, random 20 % (control)"]
    if top.value < everything.value - 0.1 or bottom.value > top.value - 0.1:
        return "refuted", f"top 20 % {top}, all {everything}, bottom 80 % {bottom}"
    if _below(random, everything) and _below(longer, top):
        return "holds", f"top 20 % {top}, all {everything}, bottom 80 % {bottom}, random 20 % {random}"
    return "holds when", (
        f"it is a statement about where the reward is learned: bottom 80 % ends at {bottom}, top 20 % at "
        f"{top}. That top 20 % beats all ({everything}) is due to its five times larger step, since it "
        f"averages over a fifth of the tokens: all with that step end at {longer}, and divided by all tokens "
        f"top 20 % ends at {top_same}. A random 20 % does as well as all, {random}, when averaged over "
        f"itself ({random_same} divided by all tokens)"
    )


def _below(a: Figure, b: Figure) -> bool:
    """Whether the interval of one lies below that of the other."""
    return a.high is not None and b.low is not None and a.high < b.low


CLAIM = Claim(
    id="eighty-twenty",
    subject="entropy",
    statement="Training on the 20 % of tokens with the highest entropy does as well as training on all, or "
    "better; the other 80 % alone do badly.",
    source=f"{EIGHTY_TWENTY}; {ENTROPY_ESSAY.at('section 2.3')}",
    experiment="8 prompts, sequences of 2 decisions (4 choices) among 8 filler tokens (0.97 sure), reward 1 "
    "if all are right; 60 steps; mean over chosen tokens, the same rule for every arm",
    control="a random 20 %; every arm again, divided by all tokens; all with five times the step",
    measure=measure,
    judge=judge,
    real_runs=RealRuns(
        "entropy.md#nine-arms-on-one-budget",
        "agree in part",
        "the top fifth does as well as all tokens and the other four fifths do harm, as here;"
        " a random fifth does harm there, where Adam takes a full step in the direction of "
        "noise, and none here",
    ),
)
