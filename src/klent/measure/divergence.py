"""How far a policy is from the model it came from: exact KL divergence along its own completions."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from klent.head.divergence import token_divergence
from klent.kit.statistics import standard_error
from klent.models.load import LoadedModel
from klent.objectives import categorical_kl
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.streams.batch import make_batch
from klent.streams.episode import Episode

Divergence = TypedDict(
    "Divergence",
    {
        "problems": int,
        "samples": int,
        "tokens": int,
        "kl/base": float,
        "kl/base_error": float,
        "kl/base_completion": float,
    },
)
"""Means over tokens (nats per token), their standard error over problems, and the mean per completion."""


def measure_divergence(
    policy: LoadedModel,
    base: LoadedModel,
    rollouts: Sequence[Episode],
    *,
    samples: int,
    temperature: float,
) -> Divergence:
    r"""KL divergence of a policy from a base model on the policy's own completions.

    .. math:: \frac{1}{T} \sum_t KL(\pi(\cdot | x_{<t}) \,\|\, \pi_0(\cdot | x_{<t})),
        \qquad x \sim \pi

    At each token the divergence of the two next-token distributions is summed over the whole vocabulary, so
    the only noise is which tokens were reached. Top-p and top-k are not applied.

    Args:
        policy: the model that wrote the completions.
        base: the model it is compared with.
        rollouts: ``samples`` completions per problem, problem by problem.
        samples: completions per problem.
        temperature: the sampling temperature, applied to both models.
    """
    by_completion = action_divergences(policy, base, rollouts, samples=samples, temperature=temperature)
    return in_short(by_completion, samples=samples)


def in_short(by_completion: list[Tensor], *, samples: int) -> Divergence:
    """The divergence of each action of each completion as means, with the error over problems.

    Args:
        by_completion: nats, ``[L]`` each, a problem's completions together.
        samples: completions of each problem.
    """
    starts = range(0, len(by_completion), samples)
    by_problem = [float(torch.cat(by_completion[start : start + samples]).mean()) for start in starts]
    tokens = torch.cat(by_completion)
    return {
        "problems": len(by_problem),
        "samples": samples,
        "tokens": len(tokens),
        "kl/base": float(tokens.mean()),
        "kl/base_error": standard_error(by_problem),
        "kl/base_completion": float(tokens.sum()) / len(by_completion),
    }


@torch.no_grad()
def action_divergences(
    policy: LoadedModel, base: LoadedModel, rollouts: Sequence[Episode], *, samples: int, temperature: float
) -> list[Tensor]:
    """:func:`completion_divergence` of each completion, with a problem's prompt read once for all of them.

    Models that do more to their logits than a head does are asked one completion at a time.
    """
    pair = [CausalPolicy(loaded.model, temperature=temperature) for loaded in (policy, base)]
    if not all(one.fused for one in pair):
        return [completion_divergence(policy, base, one, temperature=temperature) for one in rollouts]
    batch = make_batch(rollouts, None, group_size=samples)
    longest = max(len(one.prompt_ids) + len(one.tokens) for one in rollouts)
    shared = all(takes_shared_prompt(one, longest=longest) for one in pair)
    for one in pair:
        one.train(False)
        one.packing = Packing(shared)
    grid = torch.zeros(batch.mask.shape)
    for rows in pair[0].microbatches(batch, range(len(batch))):
        (packed, mine), (_, other) = (one.predictions(batch, rows) for one in pair)
        common = min(len(mine.weight), len(other.weight))  # rows beyond pad an embedding
        found = token_divergence(mine.first(common), other.first(common), divergence="reverse")
        grid[packed.row, packed.column] = found.float().cpu()
    return [grid[number][acted] for number, acted in enumerate(batch.mask)]


@torch.no_grad()
def completion_divergence(
    policy: LoadedModel, base: LoadedModel, rollout: Episode, *, temperature: float
) -> Tensor:
    """Reverse KL of the next-token distributions at each token that the policy wrote, nats, ``[actions]``.

    What an environment said between its turns is read and not counted.
    """
    ids = torch.tensor([*rollout.prompt_ids, *rollout.tokens.tolist()], device=policy.model.device)[None]
    first = len(rollout.prompt_ids) - 1
    logp, logp_base = (
        (loaded.model(input_ids=ids, use_cache=False).logits[0, first:-1].float() / temperature).log_softmax(
            dim=-1
        )
        for loaded in (policy, base)
    )
    return categorical_kl(logp, logp_base).cpu()[rollout.acted]
