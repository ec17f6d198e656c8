"""What an engine is, and what it brings back: tokens, with the numbers of their distribution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from klent.tasks.prompt import Prompt


@dataclass
class Rollout:
    """One completion.

    Attributes:
        prompt: the problem.
        prompt_ids: the token ids that the policy saw, chat template applied.
        tokens: sampled tokens, ``[L]`` int64; a sampled stop token is the last of them.
        logp_gen: log-probability of each token under the distribution that it was drawn from, nats, ``[L]``.
        entropy_gen: entropy of that distribution, nats, ``[L]``.
        renyi_gen: its Rényi entropy of order 2, nats, ``[L]``, where the engine brings it.
        text: what a verifier sees: the tokens decoded, without the stop token.
        finish: ``stop`` where a stop token or stop string ended it, ``length`` where the budget did.
    """

    prompt: Prompt
    prompt_ids: list[int]
    tokens: Tensor
    logp_gen: Tensor
    entropy_gen: Tensor
    text: str
    finish: Literal["stop", "length"]
    renyi_gen: Tensor | None = None


class Engine(Protocol):
    """Anything that can sample a group of completions for each prompt."""

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Rollout]:
        """``group_size`` completions of every prompt, prompt by prompt.

        The result depends on the weights, the prompts and ``seed`` alone: not on the batch size, and not on
        what was generated before.
        """
        ...
