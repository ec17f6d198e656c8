"""A step's worth of made-up completions for the tiny model."""

import torch
from tiny import TURN_END, tiny_model, tiny_tokenizer

from klent.models.load import LoadedModel
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.dataset_engine import DatasetEngine
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.batch import Batch, make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.training.objective import Objective
from klent.training.reduction import Reduction
from klent.training.update import Updater

PROMPTS = [
    Prompt(f"p/{i}", [{"role": "user", "content": text}]) for i, text in enumerate(["1+1", "2+2=?", "what?"])
]
GROUP = 4


def episodes(seed: int = 0, temperature: float = 1.0) -> list[Episode]:
    """Three prompts, four completions each, of different lengths."""
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (TURN_END, 20, 21, 22, 23, 24))
    engine = TransformersEngine(loaded, SamplingOptions(max_tokens=9, temperature=temperature))
    return engine.generate(PROMPTS, group_size=GROUP, seed=seed)


def batch(rewards: list[float] | None = None, seed: int = 0) -> Batch:
    """Those completions on the grid, with rewards that differ within every group unless given."""
    if rewards is None:
        rewards = [1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.0, 0.25, 0.0, 0.0, 0.0, 2.0]
    return make_batch(episodes(seed), rewards, group_size=GROUP)


ANSWERS = [("two", "3"), ("4", "it is five"), ("what", "who knows"), ("1234", "12345")]


def pairs(count: int = 4) -> Batch:
    """Pairs of different lengths, with numbers of a reference that is not the policy."""
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (TURN_END,))
    engine = DatasetEngine(loaded, max_tokens=32, columns=("chosen", "rejected"))
    prompts = [
        Prompt(f"p/{i}", PROMPTS[i % 3].prompt, {"chosen": better, "rejected": worse})
        for i, (better, worse) in enumerate(ANSWERS[:count])
    ]
    made = make_batch(engine.generate(prompts, group_size=2, seed=0), None, group_size=2, whole_groups=True)
    drawn = torch.randn(made.mask.shape, generator=torch.Generator().manual_seed(0))
    made.streams.logp_ref = torch.where(made.mask, -3 + 0.3 * drawn, 0.0)
    return made


GRPO = ({"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2}}, {"group_advantage": {"scale": "std"}}, None)


def updater(
    objective: Objective | None = None,
    *,
    lr: float = 1e-2,
    model: object = None,
    shared: bool = True,
    joined: int = 0,
    tokens_per_microbatch: int = 4096,
    reduce: dict | None = None,
    **options: object,
) -> Updater:
    """An updater over a fresh tiny model; ``options`` as of :class:`Updater`."""
    policy = CausalPolicy(
        model or tiny_model(), temperature=1.0, packing=Packing(shared, tokens_per_microbatch, joined)
    )
    optimizer = torch.optim.SGD(policy.parameters(), lr=lr)
    options = {"learning_rate": lambda step: lr, "reduction": Reduction(**(reduce or {})), **options}
    return Updater(policy, optimizer, objective or Objective(*GRPO), **options)


def gradient(step: Updater, rows: Batch) -> dict[str, torch.Tensor]:
    """The gradient that an update of learning rate 0 leaves behind."""
    step.learning_rate = lambda number: 0.0
    step.objective.estimate_advantage(rows)
    step.run(rows, seed=0)
    return {name: p.grad.clone() for name, p in step.policy.named_parameters() if p.grad is not None}
