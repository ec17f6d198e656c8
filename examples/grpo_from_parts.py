"""The quickstart's job out of klent's parts, without its loop: GRPO on sums of one-digit numbers, SmolLM2-135M.

    klent models pull smollm2-135m
    python examples/grpo_from_parts.py                  # 20 steps, 2 to 5 minutes on two CPU cores

Read it from `main` down: what a step does is `train_step`, in the order in which it happens. The loop in
klent/runs/loop.py does the same, with checkpoints, metrics, a report, and organs that look on. The numbers are
the loop's too: same seeds, same prompts, same updates (tests/test_examples.py holds the two side by side).
"""

import argparse
from dataclasses import dataclass

import torch

from klent.config import GymSettings
from klent.config.rewards import parse_rewards
from klent.control.schedule import learning_rate
from klent.kit.seeds import derive_seed
from klent.models.load import load_policy
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.batch import make_batch
from klent.tasks import Scorer, Task, load_task
from klent.training.objective import Objective
from klent.training.reduction import Reduction
from klent.training.update import Updater

SUMS = GymSettings(gym="chain_sum", config={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})


@dataclass
class Settings:
    """The quickstart's, where nothing else is said."""

    model: str = "smollm2-135m"
    steps: int = 20
    prompts: int = 8  # per step
    group: int = 8  # completions of each prompt
    max_tokens: int = 12
    peak: float = 2e-5  # learning rate of the first step; it falls to 0 in a straight line
    heldout: int = 64  # problems kept out of training
    seed: int = 0


def build(settings: Settings) -> tuple[TransformersEngine, Updater]:
    """A model, what samples from it, and what trains it: the same weights in both."""
    loaded = load_policy(settings.model, seed=settings.seed, device="auto")
    engine = TransformersEngine(loaded, SamplingOptions(max_tokens=settings.max_tokens))

    policy = CausalPolicy(loaded.model, temperature=1.0)
    # A group is packed behind its one prompt where the model's attention gives the same numbers that way.
    policy.packing = Packing(takes_shared_prompt(policy, longest=settings.max_tokens), budget=4096)

    objective = Objective(
        loss={"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2}},
        advantage={"group_advantage": {"scale": "std"}},
        token_reward=None,  # {"kl_in_reward": {"coef": 0.05}} would need a reference policy
    )
    parameters = list(policy.trainable().values())
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors}],
        lr=settings.peak,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,
    )
    updater = Updater(
        policy,
        optimizer,
        objective,
        learning_rate=lambda step: learning_rate(
            step, peak=settings.peak, warmup=0, total=settings.steps, schedule="linear"
        ),
        reduction=Reduction(over="sequences"),
        max_grad_norm=1.0,
    )
    return engine, updater


def train_step(
    number: int, settings: Settings, task: Task, engine: TransformersEngine, scorer: Scorer, updater: Updater
) -> dict[str, float]:
    """One step, from prompts to weights."""
    torch.manual_seed(derive_seed(settings.seed, "torch", number))

    # Prompts are a function of the position alone, completions of the weights, the prompts and the seed.
    first = (number - 1) * settings.prompts
    prompts = [task.train(first + i) for i in range(settings.prompts)]
    seed = derive_seed(settings.seed, "rollout", number)
    episodes = engine.generate(prompts, group_size=settings.group, seed=seed)

    # Rewards run in a process of their own; NaN is unscorable: left out of the baseline, advantage 0.
    scores = scorer.score(
        [e.prompt for e in episodes], [e.text for e in episodes], [e.finish for e in episodes]
    )

    # One row per completion, [B, T]; the advantage is one of its streams.
    batch = make_batch(episodes, scores.reward, group_size=settings.group)
    updater.objective.estimate_advantage(batch)
    assert batch.reward is not None

    # Micro-batches, the loss per token by the names of its arguments, one division, one optimizer step.
    result = updater.run(batch, seed=derive_seed(settings.seed, "update", number))

    assert batch.at_sampling is not None
    return {
        "reward/mean": float(batch.reward[~batch.reward.isnan()].mean()),
        "policy/entropy": float(batch.at_sampling.entropy[batch.mask].mean()),
        "grad/norm": result.grad_norm,
        "completion/length": batch.tokens / len(batch),
    }


def accuracy(
    problems: int, settings: Settings, task: Task, engine: TransformersEngine, scorer: Scorer
) -> float:
    """Share of completions that earn 1, two for each held-out problem."""
    seed = derive_seed(settings.seed, "eval")
    episodes = engine.generate(task.heldout(problems), group_size=2, seed=seed)
    scores = scorer.score(
        [e.prompt for e in episodes], [e.text for e in episodes], [e.finish for e in episodes]
    )
    return sum(value >= 1.0 - 1e-6 for value in scores.reward) / len(episodes)


def main(settings: Settings) -> list[dict[str, float]]:
    """Train, and say what happens; a row of numbers per step."""
    task = load_task(SUMS, seed=settings.seed, heldout=settings.heldout)
    engine, updater = build(settings)
    rows = []
    with Scorer(parse_rewards("last_number"), task) as scorer:
        scorer.check()
        print(f"accuracy before: {accuracy(settings.heldout, settings, task, engine, scorer):.3f}")
        for number in range(1, settings.steps + 1):
            row = train_step(number, settings, task, engine, scorer, updater)
            rows.append(row)
            print(f"step {number}", *(f"{name}={value:.3f}" for name, value in row.items()))
        print(f"accuracy after: {accuracy(settings.heldout, settings, task, engine, scorer):.3f}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    main(Settings(**vars(parser.parse_args())))
