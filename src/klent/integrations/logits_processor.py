"""The mixture of policy and target inside ``generate`` of transformers."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from klent.kit.text import plural
from klent.mixture.criteria import Criterion
from klent.mixture.mixed import mix
from klent.policies.causal_lm.model import CausalModel
from klent.rollout.decoding import PlainDecoder


class MixtureTrace(NamedTuple):
    """What a generation was drawn from, ``[R, L]`` each: one number per token after the prompt.

    Rows that ended before others are padded; mask what follows their stop token.
    """

    alpha: Tensor
    """Share of the policy."""
    kl_policy: Tensor
    """KL(q ‖ policy), nats."""
    kl_target: Tensor
    """KL(q ‖ target), nats."""
    logp: Tensor
    """Log-probability of the sampled token under q, nats."""
    logp_policy: Tensor
    """The same under the policy: ``exp(logp_policy - logp)`` is the token's importance weight."""


class MixtureLogitsProcessor(LogitsProcessor):
    r"""Samples from q ∝ policy^alpha · target^(1 - alpha) in any ``model.generate(...)``.

    The model that generates is the policy. The target is another model with its vocabulary, or the same model
    behind another prompt; either keeps its own keys and values, so a token costs one step of each.

    Args:
        target: a transformers causal language model; may be the generating model itself.
        alpha: share of the policy in [0, 1], or the criterion that chooses it for every token: ``chernoff``,
            ``snr``, ``kl_budget``, ``entropy`` or ``ess``, see :func:`klent.mixture.solve_alpha`.
        value: what ``kl_budget``, ``entropy`` or ``ess`` aim at.
        inputs: the target's prompts as a tokenizer returns them, ``input_ids`` ``[P, L]`` and, where they are
            padded, ``attention_mask``; one row per prompt. None is the policy's prompts, which then must
            not be padded.
        temperature: divides the policy's logits.
        target_temperature: divides the target's logits.

    Note:
        *One call.* A processor serves one ``generate``: it holds the target's keys and values. Sampling and
        greedy decoding work; beam search, which shuffles rows, is refused.

        *What comes after.* transformers applies its own temperature, top-k and top-p to what a processor
        returns, here q. Leave them at 1.0, 0 and 1.0 (``top_k`` is 50 unless set) where the recorded ``logp``
        is to be that of the distribution sampled from.

    Example:
        >>> from klent.integrations import MixtureLogitsProcessor
        >>> mixer = MixtureLogitsProcessor(teacher, alpha="chernoff")                     # doctest: +SKIP
        >>> ids = student.generate(**inputs, logits_processor=[mixer], do_sample=True,    # doctest: +SKIP
        ...                        top_k=0, max_new_tokens=64)
        >>> trace = mixer.trace(ids)                                                      # doctest: +SKIP
        >>> weight = (trace.logp_policy - trace.logp).exp()                                # doctest: +SKIP
    """

    def __init__(
        self,
        target: CausalModel,
        *,
        alpha: float | Criterion = "chernoff",
        value: float | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        temperature: float = 1.0,
        target_temperature: float = 1.0,
    ) -> None:
        if min(temperature, target_temperature) <= 0:
            raise ValueError(f"temperatures are {temperature} and {target_temperature}, expected above 0")
        mix(torch.zeros(2), torch.zeros(2), alpha=alpha, value=value)  # raises for a bad alpha or value
        self.target = target
        self.alpha, self.value = alpha, value
        self.inputs = inputs
        self.temperature, self.target_temperature = temperature, target_temperature
        self._decoder: PlainDecoder | None = None
        self._numbers: list[Tensor] = []  # alpha and both KLs of each step, [3, R]
        self._logp: list[Tensor] = []  # of each token but the newest, under q and the policy, [2, R]

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities of q for the next token, ``[R, V]``, from the policy's logits ``scores``."""
        if self._decoder is None:
            self._decoder = self._read_prompts(input_ids)
            logits = self._decoder.start()
        else:
            self._follow(input_ids)
            logits = self._decoder.step(input_ids[:, -1].to(self.target.device))
        if logits.shape != scores.shape:
            raise ValueError(
                f"the target has {logits.shape[-1]} logits per token, the policy {scores.shape[-1]}. Use "
                "models of one vocabulary."
            )
        policy = scores.float() / self.temperature
        target = logits.to(scores.device).float() / self.target_temperature
        mixed = mix(policy, target, alpha=self.alpha, value=self.value)
        self._seen = input_ids
        self._log_q, self._log_policy = mixed.log_q, policy.log_softmax(-1)
        self._numbers.append(torch.stack([mixed.alpha, mixed.kl_policy, mixed.kl_target]))
        # A copy: later processors may write into what they get.
        return mixed.log_q.clone()

    def trace(self, sequences: Tensor) -> MixtureTrace:
        """The numbers of every token of what ``generate`` returned, ``[R, prompt + L]``, prompts included."""
        if not self._numbers:
            raise ValueError("nothing has been generated with this processor yet")
        length = len(self._numbers)
        start = self._seen.shape[1] + 1 - length
        expected = [len(self._seen), start + length]
        if list(sequences.shape) != expected:
            raise ValueError(
                f"sequences have shape {list(sequences.shape)}, expected {expected}: pass on what generate "
                "returned, prompts included"
            )
        last = self._logp_of(sequences[:, -1])
        alpha, kl_policy, kl_target = torch.stack(self._numbers, dim=-1)
        logp, logp_policy = torch.stack([*self._logp, last], dim=-1)
        return MixtureTrace(alpha, kl_policy, kl_target, logp, logp_policy)

    def _read_prompts(self, input_ids: Tensor) -> PlainDecoder:
        inputs = {"input_ids": input_ids} if self.inputs is None else self.inputs
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        if len(input_ids) % len(ids):
            raise ValueError(
                f"inputs has {plural(len(ids), 'prompt')}, the policy generates {plural(len(input_ids), 'row')}"
            )
        prompts = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        return PlainDecoder(self.target, prompts, group_size=len(input_ids) // len(ids), pad=0)

    def _follow(self, input_ids: Tensor) -> None:
        """Record the log-probability of the newest token; refuse rows that changed otherwise."""
        if not torch.equal(input_ids[:, :-1], self._seen):
            raise ValueError(
                "the rows are not those of the last token with one token more: make a new "
                "MixtureLogitsProcessor for each generate, and use sampling or greedy decoding, not beams"
            )
        self._logp.append(self._logp_of(input_ids[:, -1]))

    def _logp_of(self, token: Tensor) -> Tensor:
        both = torch.stack([self._log_q, self._log_policy])
        return both.gather(2, token.to(both.device)[None, :, None].expand(2, -1, 1))[..., 0]
