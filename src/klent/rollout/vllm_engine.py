"""The vLLM engine: it samples with a copy of the weights, which every step renews and certifies.

vLLM gives the log-probability of each sampled token and no entropy. Entropy, and the sums over squared
probabilities, are therefore those of one pass of the trainer over what was sampled, with the same weights at the
same temperature: the metric ``policy/entropy_rescored`` says so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from klent.errors import ModelError
from klent.kit.seeds import derive_seed
from klent.models.adapter import merged_weights
from klent.models.device import type_name
from klent.models.load import LoadedModel
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.policy import Policy
from klent.rollout.certificate import Certifier
from klent.rollout.engine import SyncCertificate
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.rollout.vllm_library import Answer, Question
from klent.streams.batch import make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Library(Protocol):
    """What samples: :class:`klent.rollout.vllm_library.VllmLibrary`, or its server's counterpart."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None": ...

    def sample(
        self, questions: Sequence[Question], options: SamplingOptions, stop_ids: Sequence[int]
    ) -> list[list[Answer]]: ...

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]: ...

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None: ...


class VllmEngine(TransformersEngine):
    """An :class:`klent.rollout.engine.Engine` over vLLM; prompts, stop tokens and texts are as of its base class.

    A completion depends on the weights, its prompt and the seed; its numbers also, by rounding, on what is computed
    beside it, which vLLM does not hold fixed on a CPU.

    Args:
        loaded: the model that is trained.
        options: how to sample; without truncation.
        library: holds the copy.
        dtype: that it computes in.
        progress: called with (completions done, completions asked for).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        options: SamplingOptions,
        library: Library,
        *,
        dtype: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(loaded, options, progress=progress)
        self.library = library
        coarser = next(
            one for one in ("bfloat16", "float16", "float32") if one in (dtype, type_name(loaded.model.dtype))
        )
        self.certifier = Certifier(loaded.tokenizer, dtype=coarser, of_engine=lambda: library.tokenizer)
        self.policy: CausalPolicy | None = None

    def sync(self, policy: Policy) -> SyncCertificate:
        """Hand the weights over, with an adapter merged in float32, and certify them.

        Raises:
            SyncError: they did not arrive, or are not sampled from as the trainer takes it.
        """
        if not isinstance(policy, CausalPolicy):
            raise ModelError("vllm samples text, and this policy is no language model; remove rollout.engine")
        self.policy = policy
        policy.train(False)
        self.library.load(iter(hugging_face_weights(self.loaded.model).items()))
        return self.certifier.certify(policy, self)

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
        """Log-probabilities of given tokens; see :class:`klent.rollout.certificate.OwnWeights`."""
        return self.library.score(rows)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """vLLM's own cache keeps what an episode has read."""
        yield

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """``group_size`` completions of every prompt; see :class:`klent.rollout.engine.Engine`."""
        encoded = [self._encode(prompt) for prompt in prompts]
        questions = [
            Question(ids, group_size, self._room(prompt), _seed(seed, prompt, place))
            for place, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True))
        ]
        answers = self.library.sample(questions, self.options, self.loaded.stop_ids)
        episodes = [
            self._answered(answer, prompt, ids, read=0 if k else len(ids))
            for prompt, ids, group in zip(prompts, encoded, answers, strict=True)
            for k, answer in enumerate(group)
        ]
        if self.progress:
            self.progress(len(episodes), len(episodes))
        return self._rescored(episodes, group_size)

    def _answered(self, answer: Answer, prompt: Prompt, ids: list[int], *, read: int) -> Episode:
        return Episode(
            prompt=prompt,
            prompt_ids=ids,
            tokens=torch.tensor(answer.tokens),
            logp=torch.tensor(answer.logp),
            text=self.text_of(answer.tokens),
            finish=answer.finish,
            prefill=read,
        )

    def _rescored(self, episodes: list[Episode], group_size: int) -> list[Episode]:
        """With entropies of the trainer's pass over them; without, before any sync."""
        policy = self.policy
        if policy is None:
            return episodes
        batch = make_batch(episodes, None, group_size=group_size)
        policy.train(False)
        scored = list(episodes)
        for rows in policy.microbatches(batch, range(len(batch))):
            stats = policy.evaluate(batch, rows, also=("collision", "collision_logp"))
            assert stats.collision is not None
            assert stats.collision_logp is not None
            renyi = -stats.collision.log()
            for place, row in enumerate(rows):
                length = len(episodes[row].tokens)
                entropy, renyi_of, collision_logp = (
                    numbers[place, :length].float().cpu()
                    for numbers in (stats.entropy, renyi, stats.collision_logp)
                )
                scored[row] = replace(
                    episodes[row],
                    entropy=entropy,
                    renyi=renyi_of,
                    collision_logp=collision_logp,
                    rescored=True,
                )
        return scored


def hugging_face_weights(model: "PreTrainedModel") -> Mapping[str, Tensor]:
    """The weights under the names of the model's folder, with an adapter merged in float32 and not rounded."""
    if not hasattr(model, "peft_config"):
        return cast("Mapping[str, Tensor]", model.state_dict())
    return merged_weights(cast("PreTrainedModel", cast("PeftModel", model).get_base_model()), torch.float32)


def _seed(seed: int, prompt: Prompt, place: int) -> int:
    """Of a prompt's group; room for the seeds of its completions, which vLLM counts on from it."""
    return derive_seed(seed, "vllm", prompt.drawn_at(place)) % 2**53
