"""A reward model that scores completions: the texts as it was trained to read them, several in one pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch

from klent.errors import DataError, ModelError
from klent.models.chat import context_length, encode, render_prompt, turn_end
from klent.models.load import LoadedModel, load_policy, load_tokenizer
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.policies.causal_lm.reward_model import RewardModel, ScoringModel, require_scores
from klent.streams.batch import make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Messages, Prompt

Verdict = tuple[float, str]
"""A score, and why there is none where it is NaN."""


@dataclass(frozen=True)
class Text:
    """A prompt with its completion.

    Attributes:
        prompt: text or messages, and what the chat template is given beside them.
        completion: as text.
        ended: whether it ended by itself, and not because the token budget did.
        ids: its tokens as sampled, with the one that ended it; None where they are not known.
    """

    prompt: Prompt
    completion: str
    ended: bool
    ids: Sequence[int] | None


class RewardJudge:
    """Scores texts with a reward model's folder.

    Tokens that were sampled are scored as they are where the sampler's tokenizer has the same vocabulary. Any other
    text is tokenised anew: the prompt through the reward model's own chat template, the completion behind it, and the
    token that ends a turn, or a text.

    Args:
        model: the reward model.
        loaded: the same with its tokenizer.
        reads_ids: whether sampled tokens mean the same to it.
    """

    def __init__(self, model: RewardModel, loaded: LoadedModel, *, reads_ids: bool) -> None:
        self.model = model
        self.loaded = loaded
        self.reads_ids = reads_ids
        self.limit = context_length(loaded.model)
        self.turn = turn_end(loaded.tokenizer)
        eos = loaded.tokenizer.eos_token_id
        self.end = eos if eos is not None else next(iter(loaded.stop_ids), None)

    @classmethod
    def load(
        cls,
        folder: str,
        *,
        sampler: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        attention: str = "auto",
        tokens_per_microbatch: int = 4096,
        device: str = "auto",
    ) -> "RewardJudge":
        """Load a reward model's folder.

        Args:
            folder: of the reward model.
            sampler: the model that samples, whose tokenizer is compared; None = texts alone are read.
            dtype: of its weights.
            trust_remote_code: as of :func:`klent.models.load.load_policy`, likewise ``attention`` and ``device``.
            attention: which implementation.
            tokens_per_microbatch: in one forward pass.
            device: where it runs.

        Raises:
            ModelError: the folder is no reward model.
        """
        loaded = load_policy(
            folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            attention=attention,
            device=device,
            scores=True,
        )
        if not loaded.pretrained_head:
            raise ModelError(
                f"{folder} is a language model, not a reward model: it has no score head. Train one first (method: "
                "reward_model), or name another folder"
            )
        loaded.model.requires_grad_(False)
        model = RewardModel(cast(ScoringModel, loaded.model))
        require_scores(model)
        shared = takes_shared_prompt(model, longest=context_length(loaded.model))
        model.packing = Packing(shared, tokens_per_microbatch)
        reads_ids = sampler is not None and _same_tokens(sampler, loaded, trust_remote_code)
        return cls(model, loaded, reads_ids=reads_ids)

    def score(self, texts: Sequence[Text]) -> list[Verdict]:
        """The score of each text, or why it has none."""
        verdicts: list[Verdict] = [(math.nan, "")] * len(texts)
        episodes: list[Episode] = []
        places: list[int] = []
        for place, text in enumerate(texts):
            try:
                episodes.append(self._episode(text))
                places.append(place)
            except (DataError, ModelError) as error:
                verdicts[place] = (math.nan, str(error))
        if not episodes:
            return verdicts
        batch = make_batch(episodes, None, group_size=1)
        batch = replace(batch, group=_neighbours(episodes))  # answers to one prompt share it in a row
        for place, score in zip(places, self.model.scores(batch).tolist(), strict=True):
            finite = math.isfinite(score)
            verdicts[place] = (score, "") if finite else (math.nan, f"gave {score} and no score")
        return verdicts

    def _episode(self, text: Text) -> Episode:
        """A text as tokens; refused where the model cannot read it."""
        tokenizer = self.loaded.tokenizer
        prompt_ids = render_prompt(tokenizer, text.prompt.prompt, text.prompt.template)
        if self.reads_ids and text.ids is not None:
            ids = list(text.ids)
        else:
            ids = encode(tokenizer, text.completion)
            chat = not isinstance(text.prompt.prompt, str) or self._opens_turn(text.prompt.prompt)
            end = self.turn if chat and self.turn is not None else self.end
            if text.ended and end is not None and ids[-1:] != [end]:
                ids.append(end)
        if len(prompt_ids) + len(ids) > self.limit:
            raise DataError(f"reads at most {self.limit} tokens, and prompt and completion have more")
        self.loaded.check_ids([*prompt_ids, *ids], "prompt or completion")
        return Episode(text.prompt, prompt_ids, torch.tensor(ids, dtype=torch.long), text.completion, "stop")

    def _opens_turn(self, prompt: str) -> bool:
        """Whether a prompt of plain text is a chat that was rendered before."""
        return self.turn is not None and str(self.loaded.tokenizer.convert_ids_to_tokens(self.turn)) in prompt


def _same_tokens(sampler: str, loaded: LoadedModel, trust_remote_code: bool) -> bool:
    """Whether a model's tokens mean the same to the reward model."""
    other = load_tokenizer(sampler, trust_remote_code=trust_remote_code)
    return dict(other.get_vocab()) == dict(loaded.tokenizer.get_vocab())


def _neighbours(episodes: Sequence[Episode]) -> torch.Tensor:
    """One number for episodes in a row that have the same prompt."""
    groups = [0]
    for before, after in pairwise(episodes):
        groups.append(groups[-1] + (before.prompt_ids != after.prompt_ids))
    return torch.tensor(groups)


_LOADED: dict[str, RewardJudge] = {}  # of this process; a worker calls with the same folder every time


def judge_in_process(
    prompts: Sequence[str | Messages],
    texts: Sequence[str],
    templates: Sequence[Mapping[str, object]],
    ended: Sequence[bool],
    ids: Sequence[Sequence[int] | None],
    *,
    folder: str,
    options: Mapping[str, str | int | bool | None],
) -> dict[str, object]:
    """:meth:`RewardJudge.score` as a worker calls it; the model is loaded at its first call.

    Returns:
        ``verdicts``, NaN as None; and ``reads_ids``.
    """
    if folder not in _LOADED:
        _LOADED[folder] = RewardJudge.load(folder, **options)  # type: ignore[arg-type]
    judge = _LOADED[folder]
    rows = zip(prompts, texts, templates, ended, ids, strict=True)
    verdicts = judge.score([Text(Prompt("", p, template=t), c, e, i) for p, c, t, e, i in rows])
    plain = [[None if math.isnan(value) else value, why] for value, why in verdicts]
    return {"verdicts": plain, "reads_ids": judge.reads_ids}
