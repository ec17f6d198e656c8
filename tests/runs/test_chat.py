"""`klent chat`: what is streamed is what the sampler draws, turn after turn, and nothing that a model writes acts."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder
from typer.testing import CliRunner

from klent.cli import app
from klent.cli import chat as verb
from klent.errors import ConfigError, TooLong
from klent.kit.seeds import derive_seed
from klent.models.load import LoadedModel, load_policy
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.target import Target
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.runs.chat import Answer, Chat, Piece, _Stream
from klent.streams.prompt import Prompt


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_policy(str(tiny_folder(tmp_path_factory.mktemp("model"))))


def say(chat: Chat, words: str) -> tuple[list[Piece], Answer]:
    pieces: list[Piece] = []
    return pieces, chat.say(words, pieces.append)


def test_the_stream_is_what_the_sampler_draws(loaded: LoadedModel) -> None:
    options = SamplingOptions(max_tokens=24)
    pieces, answer = say(Chat(loaded, options, seed=3), "hello there")
    prompt = Prompt("p", [{"role": "user", "content": "hello there"}])
    (episode,) = TransformersEngine(loaded, options).generate(
        [prompt], group_size=1, seed=derive_seed(3, "chat", 0)
    )
    assert "".join(piece.text for piece in pieces) == answer.text == episode.text
    assert len(pieces) > 3
    assert episode.entropy is not None
    assert answer.entropy == pytest.approx(episode.entropy.tolist(), abs=0)
    assert [piece.entropy for piece in pieces] == answer.entropy[: len(pieces)]  # a token is a letter here
    assert max(answer.entropy) > 0.5
    assert answer.finish == episode.finish


def test_every_turn_reads_those_before(loaded: LoadedModel) -> None:
    options = SamplingOptions(max_tokens=6)
    chat = Chat(loaded, options, system="be brief", seed=1)
    first = say(chat, "one")[1]
    second = say(chat, "two")[1]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "two"},
    ]
    (episode,) = TransformersEngine(loaded, options).generate(
        [Prompt("p", messages)], group_size=1, seed=derive_seed(1, "chat", 1)
    )
    assert second.text == episode.text
    chat.forget()
    assert say(chat, "one")[1] == first


def test_a_mixture_says_what_the_mixture_engine_draws(loaded: LoadedModel, tmp_path: Path) -> None:
    """From the middle of a conversation on, and not a word of it forgotten; alpha None is the model again."""
    other = load_policy(str(tiny_folder(tmp_path / "other", seed=5)))
    options = SamplingOptions(max_tokens=12)
    chat = Chat(loaded, options, seed=2, other=other)
    first = say(chat, "one")[1]
    chat.mix("0.25")
    assert chat.mixed
    mixed = say(chat, "two")[1]
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "two"},
    ]
    engine = MixtureEngine(loaded, Target(other, temperature=1.0), options, alpha=0.25)
    seed = derive_seed(2, "chat", 1)
    (episode,) = engine.generate([Prompt("p", messages)], group_size=1, seed=seed)
    assert episode.entropy is not None
    assert (mixed.text, mixed.entropy) == (episode.text, pytest.approx(episode.entropy.tolist(), abs=0))
    (alone,) = TransformersEngine(loaded, options).generate([Prompt("p", messages)], group_size=1, seed=seed)
    assert alone.text != mixed.text
    chat.mix(None)
    chat.forget()
    assert say(chat, "one")[1] == first
    with pytest.raises(ConfigError, match="--against"):
        Chat(loaded, options).mix("0.5")
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\]"):
        chat.mix("7")


def test_text_goes_on_where_there_is_no_template(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SamplingOptions(max_tokens=5)
    monkeypatch.setattr(loaded.tokenizer, "chat_template", None)
    chat = Chat(loaded, options)
    first = say(chat, "once ")[1]
    second = say(chat, " upon")[1]
    (episode,) = TransformersEngine(loaded, options).generate(
        [Prompt("p", f"once {first.text} upon")], group_size=1, seed=derive_seed(0, "chat", 1)
    )
    assert second.text == episode.text


def test_an_answer_that_is_cut_stays_as_far_as_it_was_read(loaded: LoadedModel) -> None:
    chat = Chat(loaded, SamplingOptions(max_tokens=24), seed=3)
    pieces: list[Piece] = []

    def stop(piece: Piece) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    answer = chat.say("hello there", stop)
    assert answer.finish == "cut"
    assert answer.text == "".join(piece.text for piece in pieces) == chat.messages[-1]["content"]
    assert say(chat, "go on")[1].text


def test_what_does_not_fit_leaves_the_conversation_as_it_was(loaded: LoadedModel) -> None:
    chat = Chat(loaded, SamplingOptions(max_tokens=8), seed=3)
    say(chat, "hi")
    before = list(chat.messages)
    with pytest.raises(TooLong):
        say(chat, "x" * 600)
    assert chat.messages == before
    assert say(chat, "hi")[1].entropy


def test_a_letter_of_several_tokens_is_told_when_it_is_whole() -> None:
    decode: Callable[..., str] = lambda tokens, **_: bytes(tokens).decode("utf-8", "replace")  # noqa: E731
    loaded: Any = types.SimpleNamespace(tokenizer=types.SimpleNamespace(decode=decode), stop_ids=(0,))
    pieces: list[Piece] = []
    stream = _Stream(loaded, pieces.append)
    for entropy, token in enumerate([*"aé€".encode(), 0xE2, 0]):
        stream.hear(token, float(entropy))
    stream.end()
    assert pieces == [("a", 0.0), ("é", 2.0), ("€", 5.0), ("\ufffd", 7.0)]
    assert len(stream.entropy) == 8


class FakeChat:
    templated = True
    mixed = False

    def __init__(self, *_: object, **__: object) -> None:
        self.said: list[str] = []

    def forget(self) -> None:
        self.said.append("/new")

    def mix(self, alpha: str | None) -> None:
        if alpha == "x":
            raise ConfigError("alpha x: expected a number")
        self.mixed = alpha is not None
        self.said.append(f"/alpha {alpha}")

    def say(self, words: str, on_piece: Callable[[Piece], None]) -> Answer:
        self.said.append(words)
        if words == "long":
            raise TooLong("this conversation has 600 tokens")
        for text, entropy in (("\x1b[2J", 0.05), ("[red]x[/red]", 3.0)):
            on_piece(Piece(text, entropy))
        return Answer("", [0.05, 3.0], "length")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeChat:
    made = FakeChat()
    monkeypatch.setattr("klent.runs.chat.Chat", lambda *_, **__: made)
    monkeypatch.setattr("klent.models.load.load_policy", lambda *_, **__: None)
    return made


def run(*arguments: str, typed: str) -> Any:
    return CliRunner().invoke(app, ["chat", *arguments], input=typed)


def test_the_command_answers_line_by_line_and_obeys_nothing(fake: FakeChat) -> None:
    answer = run("model", typed="one\n\n/new\n/what\ntwo\n/quit\nthree\n")
    assert answer.exit_code == 0, answer.output
    assert fake.said == ["one", "/new", "two"]
    assert answer.output.count("\\x1b[2J[red]x[/red]") == 2
    assert "\x1b" not in answer.output
    assert "cut off at --max-tokens" in answer.output
    assert "/entropy shades tokens" in answer.output  # what /what is answered with


def test_two_models_answer_in_turn_and_their_mixture_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [FakeChat(), FakeChat()]
    monkeypatch.setattr("klent.runs.chat.Chat", lambda *_, **__: made.pop(0))
    monkeypatch.setattr("klent.models.load.load_policy", lambda *_, **__: None)
    first, second = made
    typed = "one\n/alpha x\n/alpha 0.5\ntwo\n/alpha off\n/new\nthree\n"
    answer = run("a", "--against", "b", typed=typed)
    assert answer.exit_code == 0, answer.output
    assert first.said == ["one", "/alpha 0.5", "two", "/alpha None", "/new", "three"]
    assert second.said == ["one", "/new", "three"]
    lines = answer.output.splitlines()
    assert [line for line in lines if line in ("a", "b", "mixture")] == ["a", "b", "mixture", "a", "b"]
    assert "expected a number" in answer.output


def test_one_model_against_itself_has_two_names() -> None:
    assert verb._labels(["a", "a"]) == ["a (1)", "a (2)"]
    assert verb._labels(["a", "b"]) == ["a", "b"]


def test_entropy_is_shown_when_it_is_asked_for(fake: FakeChat) -> None:
    answer = run("model", "--entropy", typed="one\n/entropy\ntwo\n")
    assert answer.output.count("entropy 1.52 nats per token, at most 3.00, 2 tokens") == 1
    assert answer.output.count("\\x1b[2J[red]x[/red]") == 2
    assert [verb.shade_of(nats) for nats in (0.0, 0.2, 0.7, 1.5, 9.0)] == [shade for _, shade in verb._SHADES]


def test_what_cannot_be_answered_is_said_and_the_conversation_goes_on(fake: FakeChat) -> None:
    answer = run("model", typed="long\nshort\n")
    assert answer.exit_code == 0
    assert fake.said == ["long", "short"]
    assert "/new begins another conversation" in " ".join(answer.output.split())
    refused = run("model", "--entropy", "--temperature", "0", typed="")
    assert refused.exit_code == 2
    assert run("model", "--temperature", "-1", typed="").exit_code == 2
