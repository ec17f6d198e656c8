"""A conversation with a model: each answer arrives token by token, with the entropy that it was drawn at."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from klent.errors import ConfigError
from klent.kit.seeds import derive_seed
from klent.models.load import LoadedModel
from klent.rollout.decoding import Decoder
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.target import Target
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.runs.sample import read_alpha
from klent.streams.prompt import Messages, Prompt

PART = "\ufffd"  # what the first bytes of a letter decode to


class Piece(NamedTuple):
    """Text that has just been written, and the largest entropy of its tokens' distributions, nats."""

    text: str
    entropy: float


class Answer(NamedTuple):
    """A finished answer: its text, the entropy of each token's distribution, nats, and how it ended.

    ``finish`` is ``stop``, ``length``, or ``cut`` where the reader stopped it.
    """

    text: str
    entropy: list[float]
    finish: str


class Chat:
    """A conversation; a model without a chat template goes on with the text instead.

    Args:
        loaded: the model.
        options: how answers are drawn.
        system: a message before the first; needs a chat template.
        seed: the same seed and the same words give the same answers.
        other: a second model, which :meth:`mix` samples between.

    >>> chat = Chat(load_policy("smollm2-135m"), SamplingOptions(max_tokens=64))  # doctest: +SKIP
    >>> chat.say("Name a river.", lambda piece: print(piece.text, end="")).finish  # doctest: +SKIP
    The Danube.
    'stop'
    """

    def __init__(
        self,
        loaded: LoadedModel,
        options: SamplingOptions,
        *,
        system: str | None = None,
        seed: int = 0,
        other: LoadedModel | None = None,
    ) -> None:
        self.engine: _Speaker | _MixedSpeaker = _Speaker(loaded, options)
        self.mixed = False
        self._loaded, self._options, self._other = loaded, options, other
        self.templated = bool(loaded.tokenizer.chat_template)
        self._system, self._seed = system, seed
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.turn = 0
        self.text = ""
        self.messages: Messages = [{"role": "system", "content": self._system}] if self._system else []

    def mix(self, alpha: str | None) -> None:
        """From now on sample from model^alpha · other^(1 - alpha); the conversation goes on.

        Args:
            alpha: as of :func:`klent.runs.sample.read_alpha`; None = from the model alone again.

        Raises:
            ConfigError: there is no other model, or no such alpha.
        """
        if alpha is None:
            self.engine = _Speaker(self._loaded, self._options)
        elif self._other is None:
            raise ConfigError("alpha needs a second model. Start with --against MODEL")
        else:
            share, value = read_alpha(alpha)
            target = Target(self._other, temperature=self._options.temperature)
            self.engine = _MixedSpeaker(self._loaded, target, self._options, alpha=share, value=value)
        self.mixed = alpha is not None

    def say(self, words: str, on_piece: Callable[[Piece], None]) -> Answer:
        """The answer to some words, which are then part of the conversation.

        Args:
            words: what is said.
            on_piece: called with each piece of the answer as it is drawn; a KeyboardInterrupt cuts the answer there.

        Raises:
            TooLong: the conversation does not fit into the model's context; it is as before then.
            ModelError: the chat template refuses it; likewise.
        """
        asked = {"role": "user", "content": words}
        prompt = Prompt("this conversation", [*self.messages, asked] if self.templated else self.text + words)
        stream = _Stream(self.engine.loaded, on_piece)
        self.engine.hear = stream.hear
        try:
            (episode,) = self.engine.generate(
                [prompt], group_size=1, seed=derive_seed(self._seed, "chat", self.turn)
            )
            finish: str = episode.finish
        except KeyboardInterrupt:
            finish = "cut"
        stream.end()
        self.turn += 1
        self.messages = [*self.messages, asked, {"role": "assistant", "content": stream.shown}]
        self.text += words + stream.shown
        return Answer(stream.shown, stream.entropy, finish)


class _Speaker(TransformersEngine):
    """The sampler of training, which tells each token as soon as it is drawn; for one row."""

    hear: Callable[[int, float], None]

    def _draw(self, decoder: Decoder, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        return _told(super()._draw(decoder, logits, uniform), self.hear)


class _MixedSpeaker(MixtureEngine):
    """The same between two models; the entropy is that of the mixture."""

    hear: Callable[[int, float], None]

    def _draw(self, decoder: Decoder, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        return _told(super()._draw(decoder, logits, uniform), self.hear)


def _told(drawn: tuple[Tensor, ...], hear: Callable[[int, float], None]) -> tuple[Tensor, ...]:
    token, _, entropy, *_ = drawn
    hear(int(token[0]), float(entropy[0]))
    return drawn


class _Stream:
    """Tokens as text: a letter of several tokens is told when it is whole."""

    def __init__(self, loaded: LoadedModel, on_piece: Callable[[Piece], None]) -> None:
        self._loaded, self._on_piece = loaded, on_piece
        self._tokens: list[int] = []
        self._told = 0  # entropies of the pieces before
        self.entropy: list[float] = []
        self.shown = ""

    def hear(self, token: int, entropy: float) -> None:
        """One more token; those that end an answer have no text."""
        self.entropy.append(entropy)
        if token in self._loaded.stop_ids:
            return
        self._tokens.append(token)
        text = self._decoded(self._tokens)
        if not text.endswith(PART):
            self._tell(text)

    def end(self) -> None:
        """Tell what is left of a letter that never became whole."""
        text = self._decoded(self._tokens)
        if text != self.shown:
            self._tell(text)

    def _tell(self, text: str) -> None:
        piece = Piece(text[len(self.shown) :], max(self.entropy[self._told :], default=0.0))
        self.shown, self._told = text, len(self.entropy)
        if piece.text:
            self._on_piece(piece)

    def _decoded(self, tokens: Sequence[int]) -> str:
        text = self._loaded.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)
