r"""The sync certificate: after every sync, the sampler shows that it samples from the policy that is trained.

A canary batch of made-up texts is scored by both sides, and a few tokens are sampled from its prompts exactly as
the run samples. With :math:`e` the engine's log-probabilities of the canary's tokens and :math:`t` the trainer's,
before (0) and after the update,

.. math::
    \mathrm{gap} = \mathrm{mean}\,|e - t|, \qquad
    \mathrm{arrived} = \frac{\langle e - e_0,\; t - t_0 \rangle}{\langle t - t_0,\; t - t_0 \rangle}

The trainer's side is each row alone, without packing and cache, through the model's own head: not the code that
the update runs. An engine that samples with the very tensors that are trained has nothing to certify.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from klent.errors import ModelError, SyncError
from klent.kit.seeds import derive_seed
from klent.models.chat import encode
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import logits_alone
from klent.rollout.blame import blame_weights
from klent.rollout.causes import Fault, Reading, Sampler, explain
from klent.rollout.engine import SyncCertificate
from klent.rollout.target import check_tokenizers
from klent.rollout.transformers_engine import SamplingOptions
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = (
    "The sum of 17 and 25 is 42, and the product of 6 and 7 is 42 too.",
    "def area(width, height):\n    return width * height",
    "Water boils at 100 degrees Celsius at sea level; on a mountain it boils earlier, because the air is thin.",
    "Q: Which planet is the largest? A: Jupiter.",
)
"""The canary: prose, numbers and code, of unequal lengths."""

READ = 48  # tokens of a canary text that are read
DRAWN = 8  # tokens sampled from each canary prompt
SHARE = 0.5  # of the last change in log-probability must have arrived
RESOLVED = 4.0  # times rounding, before a change says whether it has arrived

Tokens = Sequence[int]


class Tolerance(NamedTuple):
    """What rounding may do to a log-probability, nats."""

    mean: float
    largest: float
    change: float
    """Root mean square of the rounding in a change between two syncs."""

    def holds(self, gap: Tensor) -> bool:
        """Whether these distances are rounding; a NaN is none."""
        return float(gap.mean()) <= self.mean and float(gap.max()) <= self.largest


TOLERANCE = {
    "float32": Tolerance(2e-3, 0.1, 2e-5),
    "bfloat16": Tolerance(0.1, 2.0, 0.02),
    "float16": Tolerance(0.02, 0.5, 4e-3),
}
"""By the coarser type of the two sides: for each, several times what SmolLM2 shows across two libraries."""


class OwnWeights(Protocol):
    """An engine with weights of its own, as far as a certificate asks."""

    @property
    def options(self) -> SamplingOptions:
        """What the run takes it to sample."""
        ...

    def score(self, rows: Sequence[tuple[Tokens, Tokens]]) -> list[Tensor]:
        """Of (prompt, tokens): the log-probability of each token at temperature 1, untruncated, nats."""
        ...

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """As of :class:`klent.rollout.engine.Engine`."""
        ...


class _Scored(NamedTuple):
    """Both sides' numbers of the canary's tokens, nats."""

    engine: Tensor
    trainer: Tensor


class Certifier:
    """Compares an engine with the policy after each sync, and stops the run where they are not one.

    Args:
        tokenizer: the trainer's.
        dtype: the coarser of the types that the two sides are meant to compute in.
        of_engine: gives the engine's tokenizer; None, or one that gives None, where token ids are all that it reads.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        dtype: str = "float32",
        of_engine: "Callable[[], PreTrainedTokenizerBase | None] | None" = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.of_engine = of_engine
        self.tolerance = TOLERANCE[dtype]
        self.rows = [_row(encode(tokenizer, text)[:READ]) for text in TEXTS]
        self.anchor: _Scored | None = None
        self.checked = False

    @torch.no_grad()
    def certify(self, policy: CausalPolicy, engine: OwnWeights) -> SyncCertificate:
        """The evidence after a sync.

        Raises:
            SyncError: the engine does not sample from the policy; its ``cause`` is the fault's name.
        """
        self._same_tokens()
        policy.train(False)  # an adapter's dropout is no part of what samples
        logits = [logits_alone(policy.model, prompt, tokens) for prompt, tokens in self.rows]
        scored = self._read(engine.score(self.rows), self.rows, logits)
        drawn = self._draw(policy, engine)
        trainer = scored.logp()
        gaps = torch.cat([scored.gap(trainer), drawn.gap(drawn.logp(*_taken(engine.options)))])
        now = _Scored(scored.reported, trainer)
        arrived = self._arrived(now)
        certificate = SyncCertificate(float(gaps.mean()), arrived, float(gaps.max()))
        fault = self._weights_fault(policy, scored, arrived) or self._sampling_fault(drawn, engine.options)
        if fault is not None:
            raise SyncError(fault.cause, _told(fault, certificate))
        if self.anchor is None or arrived is not None:
            self.anchor = now
        return certificate

    def _same_tokens(self) -> None:
        if self.checked or self.of_engine is None:
            return
        own = self.of_engine()
        try:
            if own is not None:
                check_tokenizers(self.tokenizer, own)
        except ModelError as error:
            fault = Fault("wrong tokenizer", "its token ids do not mean what the policy's mean")
            raise SyncError(
                fault.cause, f"{_head(fault)}. Give the engine the policy's folder: {error}"
            ) from error
        self.checked = True

    def _read(
        self, reported: Sequence[Tensor], rows: Sequence[tuple[Tokens, Tokens]], logits: Sequence[Tensor]
    ) -> Reading:
        tokens = torch.tensor([token for _, completion in rows for token in completion])
        return Reading(torch.cat(list(logits)), tokens, torch.cat(list(reported)), tuple(map(len, reported)))

    def _draw(self, policy: CausalPolicy, engine: OwnWeights) -> Reading:
        """A few tokens as the run samples them: what the scores of given tokens do not show."""
        prompts = [
            Prompt(f"canary/{k}", text, token_ids=list(prompt), room=DRAWN)
            for k, (text, (prompt, _)) in enumerate(zip(TEXTS, self.rows, strict=True))
        ]
        episodes = engine.generate(prompts, group_size=1, seed=derive_seed(0, "canary", 0))
        rows = [(episode.prompt_ids, episode.tokens.tolist()) for episode in episodes]
        reported = [episode.logp for episode in episodes if episode.logp is not None]
        return self._read(reported, rows, [logits_alone(policy.model, *row) for row in rows])

    def _arrived(self, now: _Scored) -> float | None:
        """The share of the change since the anchor that the engine shows; None where rounding hides the change."""
        if self.anchor is None:
            return None
        change = (now.trainer - self.anchor.trainer).double()
        if float(change.square().mean().sqrt()) < RESOLVED * self.tolerance.change:
            return None
        shown = (now.engine - self.anchor.engine).double()
        return float((shown * change).sum() / change.square().sum())

    def _weights_fault(self, policy: CausalPolicy, scored: Reading, arrived: float | None) -> Fault | None:
        apart = not self.tolerance.holds(scored.gap(scored.logp()))
        if not apart and (arrived is None or arrived >= SHARE):
            return None
        if not apart:
            said = f"{arrived:.2f} of the last update's change in log-probability shows in its numbers"
            return Fault("old weights", said)
        anchor = None if self.anchor is None else self.anchor.trainer
        return (
            explain(scored, Sampler(), tolerance=0.0)
            or blame_weights(
                policy, scored, self.rows, anchor, taken=Sampler(), tolerance=self.tolerance.mean
            )
            or Fault("other weights", "its numbers match no weights that the trainer has or had")
        )

    def _sampling_fault(self, drawn: Reading, options: SamplingOptions) -> Fault | None:
        taken = _taken(options)
        if self.tolerance.holds(drawn.gap(drawn.logp(*taken))):
            return None
        said = (
            "it scores given tokens like the policy, but reports other numbers for those that it samples: its cache "
            "has keys and values of earlier weights, or its sampling settings are not the run's"
        )
        return explain(drawn, taken, tolerance=self.tolerance.mean) or Fault("other sampling", said)


def _row(ids: list[int]) -> tuple[list[int], list[int]]:
    """The first quarter is the prompt, the rest is scored."""
    cut = max(1, len(ids) // 4)
    return ids[:cut], ids[cut:]


def _taken(options: SamplingOptions) -> Sampler:
    return Sampler(options.temperature, options.top_p, options.top_k)


def _head(fault: Fault) -> str:
    return f"the sampler does not sample from the policy that is trained ({fault.cause}): {fault.sentence}"


def _told(fault: Fault, certificate: SyncCertificate) -> str:
    return f"{_head(fault)}. On a fixed test batch its log-probabilities are {certificate.gap:.3g} nats from the "
    f"trainer's in the mean and {certificate.gap_max:.3g} at most. {FIXES[fault.cause]}"


FIXES = {
    "old weights": "The engine's sync has no effect: check that it loads the weights it is given, in its own layout",
    "adapter missing": "Give the engine the adapter, or the weights with the adapter merged in float32",
    "wrong dtype": "Set rollout.dtype to the type that it computes in, and rollout.mismatch to correct for the rest",
    "other weights": "Check that it was built from the policy's folder",
    "wrong indexing": "Read the log-probability of each token at its own position",
    "wrong temperature": "Make it report log-probabilities of the sampled distribution (processed_logprobs), at the "
    "recipe's temperature",
    "wrong truncation": "Set rollout.top_p and rollout.top_k to the values that it uses",
    "other sampling": "Clear its prefix cache after each sync, and compare its settings with the recipe's",
}
"""What to do, by cause."""
