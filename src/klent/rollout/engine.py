"""What an engine is, and what it brings back: tokens, with the numbers of their distribution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from klent.streams.prompt import Prompt


@dataclass
class Mixture:
    """The tokens of a completion drawn from a mixture of policy and target, ``[L]`` each.

    Attributes:
        alpha: share of the policy.
        kl_policy: KL(q ‖ policy), nats.
        kl_target: KL(q ‖ target), nats.
        logp_policy: log-probability of the token under the policy, nats; the token's importance weight is
            ``exp(logp_policy - logp_gen)``.
        entropy_policy: entropy of the policy's distribution, nats.
    """

    alpha: Tensor
    kl_policy: Tensor
    kl_target: Tensor
    logp_policy: Tensor
    entropy_policy: Tensor


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
        mixture: what the mixture was at each token, where the sampler is one of policy and target.
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
    mixture: Mixture | None = None


class Engine(Protocol):
    """Anything that can sample a group of completions for each prompt."""

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Rollout]:
        """``group_size`` completions of every prompt, prompt by prompt.

        The result depends on the weights, the prompts and ``seed`` alone: not on the batch size, and not on
        what was generated before.
        """
        ...
