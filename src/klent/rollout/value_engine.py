"""The engine of values: the data's model, tilted towards what is valuable, token by token."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor

from klent.errors import ConfigError
from klent.models.chat import context_length
from klent.models.load import LoadedModel
from klent.objectives import qsft_policy
from klent.rollout.decoding import Decoder
from klent.rollout.extending import ExtendingDecoder, Kept, can_extend
from klent.rollout.mixture_engine import MixtureDecoder, MixtureEngine
from klent.rollout.recordable import Decoding
from klent.rollout.target import Target
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt

Form: TypeAlias = Literal["ratio", "probability", "logit"]


class ValueEngine(MixtureEngine):
    """An :class:`klent.rollout.engine.Engine` that samples what a log has taught; both models decode side by side.

        ratio         π(a) ∝ πᵦ(a)·exp(beta·p(a)/πᵦ(a))
        probability   π(a) ∝ πᵦ(a)·exp(beta·p(a))
        logit         π(a) ∝ πᵦ(a)·exp(beta·z(a))

    Args:
        loaded: the model that Q-SFT trained, ``p``, with the dummy's row, which is never drawn; or the one whose
            logits ``z`` implicit Q-learning trained.
        behaviour: the model of the data, ``πᵦ``; its token ids must mean the same.
        options: how to sample. ``logp`` and ``entropy`` of an episode are those of the tilted distribution.
        beta: how far to tilt; 0 is the data's policy.
        form: which of the three; see :func:`klent.objectives.qsft_policy` for the first two.
        min_behaviour: actions less likely than this in the data are never drawn: their ratio means nothing.
        rows, progress, decoding, note: as of :class:`TransformersEngine`.

    Raises:
        ModelError: the tokenizers differ.
        ConfigError: a temperature other than 1, at which a ratio of probabilities is no value.
    """

    unrecorded = "a player of values tilts one model's distribution by what another says"

    def __init__(
        self,
        loaded: LoadedModel,
        behaviour: LoadedModel,
        options: SamplingOptions,
        *,
        beta: float,
        form: Form = "ratio",
        min_behaviour: float = 0.01,
        rows: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        decoding: Decoding = "auto",
        note: Callable[[str], None] | None = None,
    ) -> None:
        if options.temperature != 1.0:
            raise ConfigError(
                f"temperature is {options.temperature:g}, and the player of values needs 1; beta makes it greedier"
            )
        super().__init__(
            loaded,
            Target(behaviour),
            options,
            alpha=1.0,
            rows=rows,
            progress=progress,
            decoding=decoding,
            note=note,
        )
        self.limit = min(self.limit, context_length(behaviour.model))
        self.beta = beta
        self.form: Form = form
        self.floor = math.log(min_behaviour) if min_behaviour > 0 else -math.inf

    def _encode_target(self, prompt: Prompt) -> list[int]:
        """Both read the same tokens."""
        return self._encode(prompt)

    def _decoder(self, prompts: Sequence[Prompt], ids: Sequence[list[int]], group_size: int) -> Decoder:
        pad = self.loaded.tokenizer.pad_token_id
        behaviour = self.target_kind(self.target.loaded.model, ids, group_size=group_size, pad=pad)
        return self._tilted(TransformersEngine._decoder(self, prompts, ids, group_size), behaviour)

    def _can_extend(self) -> bool:
        return super()._can_extend() and can_extend(self.target.loaded.model, self.target_kind)

    def _extending(self, ids: Sequence[list[int]], kept: Sequence[tuple[Kept, ...]]) -> Decoder:
        pad = self.loaded.tokenizer.pad_token_id
        models = (self.loaded.model, self.target.loaded.model)
        value, behaviour = (
            ExtendingDecoder(model, ids, mine, pad=pad)
            for model, mine in zip(models, zip(*kept, strict=True), strict=True)
        )
        return self._tilted(value, behaviour)

    def _caching(self, decoder: Decoder) -> tuple[Decoder, ...]:
        assert isinstance(decoder, ValueDecoder)
        return decoder.policy, decoder.target

    def _tilted(self, value: Decoder, behaviour: Decoder) -> "ValueDecoder":
        return ValueDecoder(value, behaviour, self.target, beta=self.beta, form=self.form, floor=self.floor)

    def _draw(self, decoder: Decoder, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        return TransformersEngine._draw(self, decoder, logits, uniform)

    def _episode(self, row: Any, prompt: Prompt, prompt_ids: list[int]) -> Episode:
        return TransformersEngine._episode(self, row, prompt, prompt_ids)


class ValueDecoder(MixtureDecoder):
    """A :class:`klent.rollout.decoding.Decoder` whose logits are the log-probabilities of the tilted policy.

    Args:
        value, behaviour: decoders of one kind over the same rows.
        settings: of the behaviour.
        beta, form: see :class:`ValueEngine`.
        floor: the least log-probability in the data of an action that may be drawn, nats.
    """

    def __init__(
        self,
        value: Decoder,
        behaviour: Decoder,
        settings: Target,
        *,
        beta: float,
        form: Form,
        floor: float,
    ) -> None:
        super().__init__(value, behaviour, settings, temperature=1.0, alpha=1.0, value=None)
        self.beta = beta
        self.form: Form = form
        self.floor = floor

    def _mix(self, ours: Tensor, theirs: Tensor) -> Tensor:
        width = min(ours.shape[-1], theirs.shape[-1])  # the dummy is beyond it
        log_p = ours.float().log_softmax(-1)[:, :width]
        log_b = theirs.float().log_softmax(-1)[:, :width]
        least = log_b.amax(-1, keepdim=True).clamp(max=self.floor)  # the likeliest is always left
        log_b = log_b.masked_fill(log_b < least, -math.inf)
        if self.form == "logit":
            return (log_b + self.beta * ours.float()[:, :width]).log_softmax(-1)
        return qsft_policy(log_p, log_b, beta=self.beta, form=self.form)
