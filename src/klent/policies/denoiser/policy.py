"""A denoiser that is also trained on noised images, its own and those of data."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klent.kit.seeds import derive_seed
from klent.policies.denoiser.actor import DenoisingActor
from klent.policies.denoiser.forward import noised
from klent.policies.vectors.policy import Compare, VectorPolicy
from klent.streams.batch import Batch, Stats

OWN = frozenset({"denoising", "denoising_kl"})


@dataclass(frozen=True)
class Noised:
    """An image of each episode at the beginning of every step.

    Attributes:
        states: ``[B, L, D]``.
        noise: what the network should predict there, ``[B, L, D]``.
        before: what it predicted at the start of the update, ``[B, L, D]``; empty of data.
    """

    states: Tensor
    noise: Tensor
    before: Tensor


class DenoiserPolicy(VectorPolicy):
    """A :class:`klent.policies.vectors.policy.VectorPolicy` that gives the streams of noised images too.

    Args:
        actor: the network and its sampler.
        reference, compare, budget: as of a vector policy.
        data: images for the stream ``denoising_data``, ``[M, D]``; None where nothing reads it.
    """

    actor: DenoisingActor

    def __init__(
        self,
        actor: DenoisingActor,
        *,
        reference: DenoisingActor | None = None,
        compare: Compare | None = None,
        budget: int = 4096,
        data: Tensor | None = None,
    ) -> None:
        super().__init__(actor, reference=reference, compare=compare, budget=budget)
        self._data = data
        self._own: Noised | None = None
        self._of_data: Noised | None = None

    @torch.no_grad()
    def noise_again(self, batch: Batch, *, seed: int) -> Tensor:
        """Noise the step's images for its whole update, and remember what the network says of them now.

        Args:
            batch: the step's episodes.
            seed: of all that is drawn; each episode has its own.

        Returns:
            The stream ``denoising_old``, ``[B, L]``.
        """
        generators = [
            torch.Generator().manual_seed(derive_seed(seed, "episode", row)) for row in range(len(batch))
        ]
        shape = (self.actor.count, self.actor.size)
        draws = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        images = torch.stack([e.actions[-1] for e in batch.episodes if e.actions is not None])
        self.train(False)
        self._own = self._noised(images, draws, clean=False)
        if self._data is not None:
            again = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
            chosen = [int(torch.randint(len(self._data), (), generator=g)) for g in generators]
            self._of_data = self._noised(self._data[chosen], again, clean=True)
        return self._squared(self._own.before - self._own.noise)

    def evaluate(self, batch: Batch, rows: Sequence[int], *, also: Collection[str] = ()) -> Stats:
        """The numbers of these episodes' steps, and of their noised images where those are wanted."""
        stats = super().evaluate(batch, rows, also=also)
        if OWN & set(also):
            own = _present(self._own)
            predicted = self._predicted(own.states[list(rows)])
            loss, moved = (self._squared(predicted - to[list(rows)]) for to in (own.noise, own.before))
            stats = stats._replace(denoising=loss, denoising_kl=moved)
        if "denoising_data" in also:
            data = _present(self._of_data)
            predicted = self._predicted(data.states[list(rows)])
            stats = stats._replace(denoising_data=self._squared(predicted - data.noise[list(rows)]))
        return stats

    def _noised(self, images: Tensor, draws: Tensor, *, clean: bool) -> Noised:
        """Every image at every step's log-SNR."""
        count = self.actor.count
        place = torch.arange(count).repeat(len(images))
        each = images.repeat_interleave(count, dim=0)
        states, noise = noised(self.actor, each, place, draws.flatten(0, 1), clean=clean)
        states, noise = states.view_as(draws), noise.view_as(draws)
        return Noised(states, noise, torch.empty(0) if clean else self._predicted(states))

    def _predicted(self, states: Tensor) -> Tensor:
        """The network's noise, ``[B, L, D]``."""
        place = torch.arange(self.actor.count).repeat(len(states))
        return self.actor.noise(states.flatten(0, 1), place).view_as(states)

    def _squared(self, difference: Tensor) -> Tensor:
        """A difference of noise in nats, ``[B, L]``."""
        return self.actor.factor * difference.square().sum(dim=-1)


def _present(images: Noised | None) -> Noised:
    if images is None:
        raise ValueError("no image was noised for this step; call noise_again first, or give the policy data")
    return images
