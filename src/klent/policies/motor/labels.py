"""How far the behaviour policy of recorded segments is from the policy: KL(behaviour ‖ policy), exact."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from klent.policies.vectors.gaussian import Gaussian
from klent.streams.episode import Episode
from klent.tasks.segments import Segments

BehaviourLabel = Literal["expected", "realised"]


class BehaviourKL:
    """The stream ``kl`` of segments whose behaviour policy is known, for PPL's labels.

        realised   KLₜ = KL(behaviour(·|sₜ) ‖ policy(·|sₜ)), in the states of the segment
        expected   Fₜ = E[Σ_{l>t} gammaˡ⁻ᵗ·KLₗ | sₜ, aₜ], from rollouts of the behaviour policy

    Of the segment's m equal parts one action each was branched from, drawn at random. F at that action is the mean
    over its continuations, and stands for the whole part, discounted so that Σₜ gammaᵗ·Fₜ has the right mean.

    Args:
        segments: with the behaviour policy's means and deviations, and with branches for ``expected``.
        label: which of the two.
        gamma: discount per action.

    Raises:
        ValueError: ``expected``, and the collection has no branches.
    """

    def __init__(self, segments: Segments, label: BehaviourLabel, gamma: float) -> None:
        if label == "expected" and segments.branch_time is None:
            raise ValueError(
                "label: expected needs extra rollouts of the behaviour policy, and the collection has none. Record "
                "it again with branches=8, or set label: realised"
            )
        self.segments = segments
        self.label = label
        self.gamma = gamma
        self.place_of = {number: place for place, number in enumerate(segments.numbers)}

    def __call__(self, actor: nn.Module, policy: Gaussian, episodes: Sequence[Episode]) -> Tensor:
        """``[N]``: one number for each action of these episodes, in their order.

        Args:
            actor: gives the policy's distribution in other states.
            policy: its distribution in the states of the episodes.
            episodes: segments, whole.
        """
        places = torch.tensor([self.place_of[int(one.prompt.columns["segment"])] for one in episodes])
        std = self.segments.std[places]
        if self.label == "realised":
            mean = self.segments.mean[places].flatten(0, 1)
            each = std.repeat_interleave(self.segments.mean.shape[1])[:, None]
            return Gaussian(mean, each).kl(policy)
        return self._expected(actor, places, std)

    def _expected(self, actor: nn.Module, places: Tensor, std: Tensor) -> Tensor:
        data = self.segments
        assert data.branch_time is not None
        assert data.branch_observation is not None
        assert data.branch_mean is not None
        time, seen = data.branch_time[places], data.branch_observation[places]  # [B, m], [B, m, k, T, D]
        count, parts, again, length, _ = seen.shape
        step = torch.arange(length)
        later = (step > time[..., None])[:, :, None].expand(count, parts, again, length)
        behaviour = Gaussian(
            data.branch_mean[places][later], std[:, None, None, None].expand_as(later)[later][:, None]
        )
        kl = behaviour.kl(actor(seen[later]))
        discount = torch.pow(self.gamma, (step - time[..., None]).clamp(min=0).to(kl.dtype))[:, :, None]
        grid = torch.zeros(later.shape, dtype=kl.dtype).index_put((later,), kl)
        future = (discount * grid).sum(-1).mean(-1)  # [B, m]: F at the actions branched from
        width = length // parts
        ahead = (time.repeat_interleave(width, dim=1) - step).to(kl.dtype)  # t_m - t within each part
        factor = torch.pow(self.gamma, ahead) if self.gamma > 0 else torch.zeros_like(ahead)
        return (future.repeat_interleave(width, dim=1) * factor).flatten()
