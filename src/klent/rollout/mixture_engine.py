"""The mixture engine: completions drawn from q ∝ policy^alpha · target^(1 - alpha), token by token.

Policy and target decode side by side, each with its own prompt, keys and values; a finished row leaves both.
Every token brings alpha, both KLs, and its log-probability under q and under the policy: the importance
weight of whatever is learnt from it; its log-probability under the target and KL(policy ‖ target): what there
is to learn from the target.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klent.errors import ConfigError, TooLong
from klent.mixture.criteria import Criterion
from klent.mixture.mixed import Mixed, mix
from klent.models.chat import context_length
from klent.models.load import LoadedModel
from klent.rollout.decoding import Decoder, DecoderKind, GroupDecoder, PlainDecoder, choose_decoder
from klent.rollout.graph import Reader
from klent.rollout.how import Draw, Drawn, How
from klent.rollout.recordable import Decoding
from klent.rollout.sampling import LOG2_E, TILE, sample_tokens
from klent.rollout.target import Target, check_tokenizers
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.episode import Episode, MixtureTrace
from klent.streams.prompt import Prompt

Share = float | Criterion | Callable[[Prompt], float]
"""The policy's share in the mixture: one number, what solves for it at every token, or a number a prompt."""


class MixtureEngine(TransformersEngine):
    """An :class:`klent.rollout.engine.Engine` that samples between a policy and a target.

    Args:
        loaded: the policy; it decides the stop tokens.
        target: what it is mixed with; its token ids must mean the same.
        options: how to sample. The temperature is the policy's; top-p and top-k cut the mixture, and
            an episode's ``logp`` is that of what they leave.
        alpha: share of the policy in [0, 1]; or the criterion that chooses it for every token, see
            :func:`klent.mixture.solve_alpha`; or what gives each prompt's, called before anything is sampled.
            May be set anew between two calls.
        value: what ``kl_budget``, ``entropy`` or ``ess`` aim at.
        rows, progress, decoding, note: as of :class:`TransformersEngine`.

    Raises:
        ModelError: the tokenizers differ.
        ConfigError: a temperature of 0, whose distribution has nothing to mix.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        target: Target,
        options: SamplingOptions,
        *,
        alpha: Share = "chernoff",
        value: float | None = None,
        rows: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        decoding: Decoding = "auto",
        note: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(loaded, options, rows=rows, progress=progress, decoding=decoding, note=note)
        if target.loaded.tokenizer is not loaded.tokenizer:
            check_tokenizers(loaded.tokenizer, target.loaded.tokenizer)
        if min(options.temperature, target.temperature) <= 0:
            raise ConfigError(
                "rollout.mixture needs a temperature above 0: at 0 there is only one token. Set rollout.temperature=1"
            )
        if not callable(alpha):
            mix(torch.zeros(2), torch.zeros(2), alpha=alpha, value=value)  # refuses what cannot be
        self.target = target
        self.target_kind: DecoderKind = PlainDecoder
        self.alpha: Share = alpha
        self.value = value

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """As of :class:`TransformersEngine`; every episode has its ``mixture``."""
        for prompt in prompts:
            self._encode_target(prompt)  # both refuse before anything is sampled
            if callable(self.alpha):
                self.alpha(prompt)
        return super().generate(prompts, group_size=group_size, seed=seed)

    def check(self, prompt: Prompt) -> None:
        """As of :class:`TransformersEngine`, for policy and target."""
        super().check(prompt)
        self._encode_target(prompt)

    def _encode_target(self, prompt: Prompt) -> list[int]:
        ids = self.target.encode(prompt, self.loaded.tokenizer)
        room = context_length(self.target.loaded.model) - self.options.max_tokens
        if len(ids) > room:
            raise TooLong(
                f"the target sees prompt {prompt.id} as {len(ids)} tokens; with rollout.max_tokens="
                f"{self.options.max_tokens} its context leaves {room}. Shorten its prompt or lower "
                "rollout.max_tokens."
            )
        self.target.loaded.check_ids(ids, f"the target's prompt {prompt.id}")
        return ids

    def _choose_decoder(self) -> DecoderKind:
        """Both or neither move rows, so that rows move alike in both."""
        with self.target.active():
            self.target_kind = choose_decoder(self.target.loaded.model)
        policy = super()._choose_decoder()
        if (self.target_kind is GroupDecoder) is (policy is GroupDecoder):
            return policy
        if policy is GroupDecoder:
            return choose_decoder(self.loaded.model, groups=False)
        with self.target.active():
            self.target_kind = choose_decoder(self.target.loaded.model, groups=False)
        return policy

    def _decoder(self, prompts: Sequence[Prompt], ids: Sequence[list[int]], group_size: int) -> Decoder:
        theirs = [self._encode_target(prompt) for prompt in prompts]
        pad = self.loaded.tokenizer.pad_token_id
        target = self.target_kind(self.target.loaded.model, theirs, group_size=group_size, pad=pad)
        return MixtureDecoder(
            super()._decoder(prompts, ids, group_size),
            target,
            self.target,
            temperature=self.options.temperature,
            alpha=self._shares(prompts, group_size),
            value=self.value,
        )

    def _how(self) -> How:
        criterion = self.alpha if isinstance(self.alpha, str) else None
        options = self.options
        return MixtureDraw(
            options.temperature, self.target.temperature, options.top_p, options.top_k, criterion, self.value
        )

    def _reader_beside(self) -> Reader:
        return Reader(self.target.loaded.model, active=self.target.active)

    def _read_beside(
        self, prompts: Sequence[Prompt], group_size: int
    ) -> tuple[Sequence[Sequence[int]], Tensor | None]:
        share = self._shares(prompts, group_size)
        if isinstance(share, float | int):
            share = torch.full((len(prompts) * group_size,), float(share))
        theirs = [self._encode_target(prompt) for prompt in prompts]
        return theirs, None if isinstance(share, str) else share

    def _shares(self, prompts: Sequence[Prompt], group_size: int) -> float | Tensor | Criterion:
        """Alpha as it is, or a number for each row."""
        share = self.alpha
        if not callable(share):
            return share
        each = torch.tensor([share(prompt) for prompt in prompts], device=self.loaded.model.device)
        return each.repeat_interleave(group_size)

    def _draw(self, decoder: Decoder, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(decoder, MixtureDecoder)
        drawn = sample_tokens(logits, uniform, top_p=self.options.top_p, top_k=self.options.top_k)
        own, mixed = decoder.policy_numbers(drawn.token), decoder.mixed
        return (*drawn, mixed.alpha, mixed.kl_policy, mixed.kl_target, *own)

    def _episode(self, row: Any, prompt: Prompt, prompt_ids: list[int]) -> Episode:
        episode = super()._episode(row, prompt, prompt_ids)
        _, _, _, _, *numbers = row.columns()
        return replace(episode, mixture=MixtureTrace(*numbers))


class MixtureDraw(NamedTuple):
    """From the logits of policy and target: a :class:`klent.rollout.how.How`.

    The alpha of each row is its share, or what the criterion finds.
    """

    temperature: float
    temperature_target: float
    top_p: float
    top_k: int
    criterion: Criterion | None
    value: float | None

    @property
    def key(self) -> tuple[object, ...]:
        return self[1:]

    @property
    def columns(self) -> int:
        return 4 + 3 + len(Own._fields)

    def __call__(
        self, logits: Sequence[Tensor], uniform: Tensor, *, temperature: Tensor, share: Tensor, fused: bool
    ) -> Drawn:
        width = min(own.shape[-1] for own in logits)
        ours = logits[0][:, :width].float() / temperature
        theirs = _tempered(logits[1][:, :width], self.temperature_target)
        mixed = mix(ours, theirs, alpha=self.criterion or share, value=self.value)
        once = Draw(1.0, self.top_p, self.top_k)
        drawn = once(
            [mixed.log_q], uniform, temperature=torch.ones_like(temperature), share=share, fused=fused
        )
        own = _own(ours, theirs, drawn.token)
        numbers = (*drawn.numbers, mixed.alpha, mixed.kl_policy, mixed.kl_target, *own)
        return Drawn(drawn.token, numbers, drawn.largest)


class Own(NamedTuple):
    """What the policy alone thinks of a token that was drawn, and how far the target is, ``[R]`` each, nats."""

    logp: Tensor
    entropy: Tensor
    logp_target: Tensor
    reverse_kl: Tensor


class MixtureDecoder:
    """A :class:`klent.rollout.decoding.Decoder` whose logits are the log-probabilities of the mixture.

    Args:
        policy, target: decoders of one kind over the same rows.
        settings: of the target.
        temperature: of the policy.
        alpha, value: see :func:`klent.mixture.mixed.mix`; a tensor has a number for each row.

    Attributes:
        mixed: of the newest token.
    """

    mixed: Mixed

    def __init__(
        self,
        policy: Decoder,
        target: Decoder,
        settings: Target,
        *,
        temperature: float,
        alpha: float | Tensor | Criterion,
        value: float | None,
    ) -> None:
        self.policy, self.target, self.settings = policy, target, settings
        self.temperature = temperature
        self.alpha, self.value = alpha, value

    def start(self) -> Tensor:
        with self.settings.active():
            theirs = self.target.start()
        return self._mix(self.policy.start(), theirs)

    def step(self, token: Tensor) -> Tensor:
        with self.settings.active():
            theirs = self.target.step(token)
        return self._mix(self.policy.step(token), theirs)

    def keep(self, rows: Sequence[int]) -> list[int]:
        order = self.policy.keep(rows)
        if self.target.keep(rows) != order:
            raise RuntimeError("policy and target keep their rows in different orders")
        if isinstance(self.alpha, Tensor):
            self.alpha = self.alpha[order]
        return order

    def policy_numbers(self, token: Tensor) -> Own:
        """Of each row's token under policy and target, before they were mixed."""
        size = self.logits.shape[-1]
        rows = max(1, TILE // size) if token.device.type == "cpu" else len(token)
        parts = [
            _own(*some)
            for some in zip(
                self.logits.split(rows), self.target_logits.split(rows), token.split(rows), strict=True
            )
        ]
        return Own(*map(torch.cat, zip(*parts, strict=True)))

    def _mix(self, ours: Tensor, theirs: Tensor) -> Tensor:
        # Widths may differ by rows that fill an embedding up and that no text has.
        width = min(ours.shape[-1], theirs.shape[-1])
        self.logits = _tempered(ours[:, :width], self.temperature)
        self.target_logits = _tempered(theirs[:, :width], self.settings.temperature)
        self.mixed = mix(self.logits, self.target_logits, alpha=self.alpha, value=self.value)
        return self.mixed.log_q


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature


def _own(logits: Tensor, theirs: Tensor, token: Tensor) -> Own:
    """The numbers of a token, for a tile of rows that stays in the cache."""
    below, below_theirs = (x - x.amax(-1, keepdim=True) for x in (logits, theirs))
    weight = torch.exp2(below * LOG2_E)
    total = weight.sum(-1)
    log_total, log_theirs = total.log(), torch.exp2(below_theirs * LOG2_E).sum(-1).log()
    # 0 * -inf is NaN, and a word of weight 0 adds nothing.
    mean = torch.linalg.vecdot(weight, below.clamp_min(-1e4)) / total
    mean_theirs = torch.linalg.vecdot(weight, below_theirs.masked_fill(weight == 0, 0.0)) / total
    logp = below.gather(1, token[:, None])[:, 0] - log_total
    logp_target = below_theirs.gather(1, token[:, None])[:, 0] - log_theirs
    entropy = (log_total - mean).clamp_min(0.0)
    return Own(logp, entropy, logp_target, ((mean - log_total) - (mean_theirs - log_theirs)).clamp_min(0.0))
