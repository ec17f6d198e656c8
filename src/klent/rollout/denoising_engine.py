"""The engine of a denoiser: noise in, an episode of denoising steps out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from klent.errors import DataError
from klent.kit.seeds import derive_seed
from klent.policies.denoiser.actor import DenoisingActor
from klent.policies.policy import Policy
from klent.rollout.engine import SyncCertificate
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt


class DenoisingEngine:
    """Draws every step from the actor's own distribution, all episodes side by side.

    Each episode's noise comes from a seed of its prompt's and its own place, so that it is the same whatever else is
    sampled beside it.

    Args:
        actor: the very network that is trained.
        progress: told of (episodes done, episodes asked for).
    """

    def __init__(self, actor: DenoisingActor, *, progress: Callable[[int, int], None] | None = None) -> None:
        self.actor = actor
        self.progress = progress

    def check(self, prompt: Prompt) -> None:
        """Refuse noise of another size than the denoiser's images.

        Raises:
            DataError: they differ.
        """
        size = prompt.columns.get("noise")
        if size != self.actor.size:
            raise DataError(
                f"task.noise is {size}, and the denoiser makes images of {self.actor.size} coordinates: set "
                f"task: {{noise: {self.actor.size}}}"
            )

    def sync(self, policy: Policy) -> SyncCertificate | None:
        """Nothing to do: the weights that sample are those that are trained."""
        return None

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """``group_size`` images of every prompt's noise, prompt by prompt."""
        total = len(prompts) * group_size
        noise = self._noise(prompts, group_size, seed)
        self.actor.eval()
        x = self.actor.start(noise[:, 0])
        states, actions, logps, entropies = [], [], [], []
        for number in range(self.actor.count):
            law = self.actor(x, torch.full((total,), number))
            drawn = law.draw(noise[:, number + 1])
            states.append(x)
            actions.append(drawn)
            logps.append(law.logp(drawn))
            entropies.append(law.entropy())
            x = drawn
        columns = (torch.stack(values, dim=1) for values in (states, actions, logps, entropies))
        episodes = [
            Episode.of_actions(prompts[index // group_size], s, a, logp=p, entropy=h, text=described(a[-1]))
            for index, (s, a, p, h) in enumerate(zip(*columns, strict=True))
        ]
        if self.progress:
            self.progress(total, total)
        return episodes

    def _noise(self, prompts: Sequence[Prompt], group_size: int, seed: int) -> Tensor:
        """Standard normal numbers, ``[episodes, steps + 1, D]``: the start, then what each step draws."""
        shape = (self.actor.count + 1, self.actor.size)
        places = (prompt.drawn_at(place) for place, prompt in enumerate(prompts))
        numbers = (place * group_size + k for place in places for k in range(group_size))
        generators = (torch.Generator().manual_seed(derive_seed(seed, "episode", i)) for i in numbers)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def described(image: Tensor) -> str:
    """An image in a line, ``[D]``: its coordinates where they are few, else how they are spread.

    >>> described(torch.tensor([0.5, -1.25])), described(torch.zeros(64))
    ('0.5 -1.25', '64 coordinates, mean 0, from 0 to 0')
    """
    if len(image) <= 4:
        return " ".join(f"{value:.4g}" for value in image.tolist())
    low, high = float(image.min()), float(image.max())
    return f"{len(image)} coordinates, mean {float(image.mean()):.3g}, from {low:.3g} to {high:.3g}"
