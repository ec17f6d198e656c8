"""The section `rollout`: where completions come from."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from klent.config.base import Count, Positive, PositiveInt, Settings
from klent.config.mismatch import Mismatch
from klent.config.mixture import MixtureSettings


class TransformersRollout(Settings):
    """Completions sampled from the policy with transformers."""

    sampled: ClassVar[bool] = True

    engine: Literal["transformers"] = "transformers"
    """What makes the completions."""
    max_tokens: PositiveInt = 256
    """Longest completion, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probs and entropies are those of the distribution at this temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the most likely tokens that hold this probability; 1 = all."""
    top_k: Count = 0
    """Sample among this many most likely tokens; 0 = all."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ()
    """Strings that end a completion, besides the model's own end token."""
    rows: Literal["auto"] | PositiveInt = "auto"
    """Completions decoded together: `auto` = as many as memory holds; what is said does not depend on it."""
    decoding: Literal["auto", "eager", "graph"] = "auto"
    """`graph`: one recorded step in fixed memory, replayed; `eager`: step by step; `auto` = graph on a GPU."""
    mixture: MixtureSettings | None = None
    """Sample between the policy and a target; evaluation samples from the policy all the same."""
    pairs: Literal["best_worst"] | None = None
    """Of each prompt's completions, train on a pair: the best by reward against the worst; null = on all."""
    mismatch: Mismatch | None = None
    """Weighs by trainer/sampler where their log-probabilities differ; null = they are taken to be the same."""
    staleness: Count = 0
    """Steps that sampling runs ahead of training, with a copy of the weights; 0 = they take turns."""

    @field_validator("mismatch", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return {"mode": value} if isinstance(value, str) else value

    def for_evaluation(self) -> "TransformersRollout":
        """How held-out problems are answered: sampled as in training, from the policy alone."""
        plain = self.mixture is None and self.pairs is None and not self.staleness
        return self if plain else self.model_copy(update={"mixture": None, "pairs": None, "staleness": 0})


class VllmRollout(TransformersRollout):
    """Completions sampled by vLLM, from a copy of the weights that every step renews."""

    engine: Literal["vllm"]  # type: ignore[assignment]  # a union's tag, and nobody sets it
    """What makes the completions."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that vLLM computes in; auto = that of the policy, so that both differ by rounding; float32 with `lora`."""
    cache_gb: Positive = 1.0
    """Memory for keys and values, in GB of 10^9 bytes; groups share the prompt's part of it. Not with a server."""
    server: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    """Address of a vLLM server to sample with, such as http://localhost:8000; null = vLLM in this process."""
    server_folder: str | None = None
    """Folder through which the server gets weights; it must see it too. null = a temporary one of this machine."""

    def for_evaluation(self) -> TransformersRollout:
        """How held-out problems are answered: sampled with the trainer's own weights."""
        return TransformersRollout(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            stop=self.stop,
            rows=self.rows,
            decoding=self.decoding,
        )


class DatasetRollout(Settings):
    """Completions read from the data's `completion` column: supervised fine-tuning."""

    sampled: ClassVar[bool] = False
    temperature: ClassVar[float] = 1.0  # log-probs are those of the model's own distribution
    mixture: ClassVar[None] = None
    mismatch: ClassVar[None] = None
    staleness: ClassVar[int] = 0
    pairs: ClassVar[None] = None  # the data has them, or not

    engine: Literal["dataset"]
    """What makes the completions."""
    max_tokens: PositiveInt = 512
    """Longest completion, in tokens; a longer one is refused, not cut."""

    def for_evaluation(self) -> TransformersRollout:
        """How held-out problems are answered: sampled from the policy, as long as training's completions."""
        return TransformersRollout(max_tokens=self.max_tokens)


class PolicyRollout(Settings):
    """Episodes of a policy whose actions are vectors, drawn from its own distribution."""

    sampled: ClassVar[bool] = True
    temperature: ClassVar[float] = 1.0
    mixture: ClassVar[None] = None
    mismatch: ClassVar[None] = None
    staleness: ClassVar[int] = 0

    engine: Literal["policy"]
    """What makes the episodes."""
    actions: PositiveInt = 20
    """Actions of an episode at most: of a denoiser the steps from noise to image."""
    pairs: Literal["best_worst"] | None = None
    """Of each group of episodes, train on a pair: the best by reward against the worst; null = on all."""

    @property
    def max_tokens(self) -> int:
        """Longest episode, in actions."""
        return self.actions

    def for_evaluation(self) -> "PolicyRollout":
        """As in training."""
        return self


#: the classes of the union, by tag
ROLLOUTS: dict[str, type[Settings]] = {
    "transformers engine": TransformersRollout,
    "vllm engine": VllmRollout,
    "dataset engine": DatasetRollout,
    "policy engine": PolicyRollout,
}


def _tag(value: object) -> str | None:
    if isinstance(value, TransformersRollout | DatasetRollout | PolicyRollout):
        return f"{value.engine} engine"
    if not isinstance(value, dict):
        return None
    tag = f"{value.get('engine', 'transformers')} engine"
    return tag if tag in ROLLOUTS else None


Rollout = Annotated[
    Annotated[TransformersRollout, Tag("transformers engine")]
    | Annotated[VllmRollout, Tag("vllm engine")]
    | Annotated[DatasetRollout, Tag("dataset engine")]
    | Annotated[PolicyRollout, Tag("policy engine")],
    Discriminator(
        _tag,
        custom_error_type="rollout_engine",
        custom_error_message="`engine` is transformers, vllm, dataset (replay) or policy (vectors)",
    ),
]
