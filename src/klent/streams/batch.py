"""A step's completions as token streams on one ``[B, T]`` grid: a row each, padded on the right."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from klent.policies.causal_lm.packing import Completion
from klent.rollout.engine import Rollout


@dataclass
class Batch:
    """What a step knows about its completions.

    Attributes:
        rollouts: the completions, prompt by prompt.
        group: the prompt that each answers, ``[B]``.
        reward: one number each, nan where unscorable, ``[B]``.
        mask: True on completion tokens, ``[B, T]`` bool.
        streams: name -> ``[B, T]`` float: ``logp_gen`` and ``entropy_gen`` from the sampler, ``advantage``
            once
            estimated, ``logp_old``, ``entropy_old`` and ``logp_ref`` where a term asks for them, 0 off the
            mask; ``logp_policy`` and ``entropy_policy`` where another distribution than the policy's was
            sampled, and ``weight``, which multiplies the loss; and, bool, the tokens that each selector chose
            for an optimizer step.
    """

    rollouts: list[Rollout]
    group: Tensor
    reward: Tensor
    mask: Tensor
    streams: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Completion tokens in the batch."""
        return int(self.mask.sum())

    @property
    def trained(self) -> Tensor:
        """The tokens that the loss sees: those chosen under the name ``mask``, or all, ``[B, T]`` bool."""
        return self.streams.get("mask", self.mask)

    @property
    def mixed(self) -> bool:
        """Whether the tokens were drawn from a mixture, so that means over them are not the policy's."""
        return "logp_policy" in self.streams

    @property
    def own(self) -> dict[str, Tensor]:
        """The policy's ``logp`` and ``entropy`` as it stood while the step sampled, ``[B, T]``.

        Those of the sampler where it sampled from the policy; nan where nothing was sampled; 0 off the mask.
        """
        source = "policy" if self.mixed else "gen"
        return {name: self.streams[f"{name}_{source}"] for name in ("logp", "entropy")}

    def completions(self, rows: Sequence[int]) -> list[Completion]:
        """These rows as the packer takes them."""
        return [Completion(b, self.rollouts[b].prompt_ids, self.rollouts[b].tokens) for b in rows]


def make_batch(rollouts: Sequence[Rollout], reward: Sequence[float], *, group_size: int) -> Batch:
    """Line completions up on a grid.

    Args:
        rollouts: ``group_size`` completions a prompt, prompt by prompt.
        reward: one number each, nan where unscorable.
        group_size: completions a prompt.
    """
    count = torch.tensor([len(r.tokens) for r in rollouts])
    mask = torch.arange(int(count.max()))[None] < count[:, None]
    streams = {
        "logp_gen": pad_sequence([r.logp_gen for r in rollouts], batch_first=True),
        "entropy_gen": pad_sequence([r.entropy_gen for r in rollouts], batch_first=True),
    }
    mixtures = [r.mixture for r in rollouts if r.mixture is not None]
    if len(mixtures) == len(rollouts):
        streams["logp_policy"] = pad_sequence([m.logp_policy for m in mixtures], batch_first=True)
        streams["entropy_policy"] = pad_sequence([m.entropy_policy for m in mixtures], batch_first=True)
    return Batch(
        rollouts=list(rollouts),
        group=torch.arange(len(rollouts)) // group_size,
        reward=torch.tensor(reward, dtype=torch.float32),
        mask=mask,
        streams=streams,
    )
