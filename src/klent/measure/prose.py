"""How well a model still predicts texts: English prose that every Python carries (``pydoc_data``), or the user's."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from klent.errors import DataError
from klent.kit.statistics import mean, standard_error
from klent.kit.text import plural
from klent.models.chat import context_length
from klent.models.load import LoadedModel
from klent.tasks.lines import JsonLines

SHORTEST = 200  # characters of a paragraph
LONGEST_TOKENS = 256


def paragraphs(count: int) -> list[str]:
    """So many paragraphs of running text, always the same ones for one version of Python.

    Raises:
        DataError: this Python has none, or not so many.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("this Python has no pydoc_data: set judge.prose to 0") from error
    blocks = [" ".join(block.split()) for name in sorted(topics) for block in topics[name].split("\n\n")]
    found = [block for block in blocks if len(block) >= SHORTEST and _is_running_text(block)]
    prose = list(dict.fromkeys(found))  # topics share paragraphs
    if len(prose) < count:
        raise DataError(
            f"Python's help has {plural(len(prose), 'paragraph')} of prose, fewer than judge.prose, {count}; lower it"
        )
    random.Random("klent prose").shuffle(prose)
    return prose[:count]


def _is_running_text(block: str) -> bool:
    """Sentences, and neither grammar nor code."""
    letters = sum(letter.isalpha() or letter.isspace() for letter in block)
    return block[:1].isupper() and block.endswith(".") and letters > 0.9 * len(block)


def texts_of(file: str) -> list[str]:
    """The column ``text`` of a JSON Lines file.

    Raises:
        ConfigError: there is no such file.
        DataError: it is empty, or a line has no text.
    """
    lines = JsonLines(Path(file), file, "judge.texts")
    texts = []
    for index, row in enumerate(lines):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f'{lines.place(index)}: no `text`; every line of judge.texts is {{"text": ...}}')
        texts.append(text)
    if not texts:
        raise DataError(f'{file}: judge.texts has no line; every line is {{"text": ...}}')
    return texts


@torch.no_grad()
def text_nats(loaded: LoadedModel, name: str, texts: Sequence[str]) -> dict[str, float]:
    """Mean negative log-likelihood of texts, nats per token, with its standard error over texts.

    Args:
        loaded: the model; its own distribution, at temperature 1.
        name: of the texts; the measures are ``NAME/nats`` and ``NAME/nats_error``.
        texts: each is read alone, from its second token on, up to ``LONGEST_TOKENS``.
    """
    values, length = [], min(LONGEST_TOKENS, context_length(loaded.model))
    for text in texts:
        cut = {"add_special_tokens": False, "truncation": True, "max_length": length}
        ids = torch.tensor([loaded.tokenizer(text, **cut).input_ids], device=loaded.model.device)
        if ids.shape[1] < 2:
            raise DataError(
                f"{name}: the text {text!r} has only one token, so there is nothing to predict; remove it"
            )
        logp = loaded.model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)
        values.append(float(-logp.gather(1, ids[0, 1:, None]).mean()))
    return {f"{name}/nats": mean(values), f"{name}/nats_error": standard_error(values)}


@torch.no_grad()
def weight_distance(loaded: LoadedModel, base: LoadedModel) -> float:
    """``‖θ - θ₀‖ / ‖θ₀‖`` over the parameters that both have.

    Raises:
        DataError: they are of different models.
    """
    own, other = dict(loaded.model.named_parameters()), dict(base.model.named_parameters())
    if own.keys() != other.keys() or any(own[name].shape != other[name].shape for name in own):
        reason = "is between two models of one architecture, and these have other weights"
        raise DataError(f"the distance of weights {reason}; set judge.distance to false")
    moved = sum(float((own[name].double() - other[name].double()).square().sum()) for name in own)
    size = sum(float(value.double().square().sum()) for value in other.values())
    return float((moved / size) ** 0.5)
