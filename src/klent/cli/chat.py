"""``klent chat``: a conversation with a model or a run in the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from klent.cli.common import Debug, Runs, err, learnt_values, model_and_run, out, refuse_wordless
from klent.cli.evaluate import check_probability, check_temperature
from klent.errors import ConfigError, KlentError
from klent.kit.terminal import visible
from klent.kit.text import plural

if TYPE_CHECKING:
    from collections.abc import Mapping

    from klent.runs.chat import Answer, Chat, Piece

_HELP = "/new begins another conversation, /entropy shades tokens or stops it, /quit ends (so does Ctrl-D)"
_MIXES = (
    "/alpha 0.5 samples between the two models (also chernoff, ess=0.5, ...), /alpha off from both in turn"
)
#: background of a token by the entropy of its distribution, nats: below 0.1 none
_SHADES = (
    (0.1, ""),
    (0.5, "on #4a3a12"),
    (1.0, "on #6b4e0f"),
    (2.0, "on #946a0c"),
    (float("inf"), "on #c2410c"),
)


def chat(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN", help="A model, a run (its final model), or a model folder in a run."
        ),
    ],
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Shade each token by the entropy it was drawn at.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, max=10_000_000, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[
        float, typer.Option(callback=check_temperature, help="Sampling temperature; 0 is greedy.")
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(callback=check_probability, help="Sample among the likeliest tokens of this share."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and words give the same answers.")] = 0,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|RUN", help="A second model that answers too, such as another checkpoint."
        ),
    ] = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Chat with a model over several turns. Answers appear token by token; Ctrl-C stops one.

    /new begins another conversation, /entropy shades tokens or stops it, /quit ends. A model without a chat template
    continues the text. The entropy is of the distribution that each token was drawn from, in nats, at the
    temperature and top-p given.

    With --against two models answer, each in its own conversation; /alpha samples from a mixture of both instead:
    MODEL^alpha · AGAINST^(1 - alpha).

    ```
    klent chat runs/quickstart
    klent chat smollm2-135m --entropy --temperature 0.7 --system "Be brief."
    echo "Name three rivers" | klent chat smollm2-135m
    klent chat runs/quickstart --against smollm2-135m
    ```
    """
    if entropy and temperature == 0:
        raise ConfigError(
            "--entropy: at temperature 0 every token is certain, so its entropy is 0. Set --temperature above 0"
        )
    from klent.models.load import load_policy
    from klent.rollout.transformers_engine import SamplingOptions
    from klent.runs.chat import Chat

    options = SamplingOptions(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    names = [name, *([against] if against else [])]
    folders = [_speaking(one, runs) for one in names]
    loaded = [load_policy(folder, device="auto") for folder in folders]
    sessions = {
        label: Chat(model, options, system=system, seed=seed, other=loaded[-1] if against else None)
        for label, model in zip(_labels(names), loaded, strict=True)
    }
    for one, session in sessions.items():
        if system is not None and not session.templated:
            raise ConfigError(
                f"--system: {one} has no chat template, so it reads no system message; leave it out"
            )
    _converse(sessions, entropy)


def _speaking(name: str, runs: Path) -> str:
    """The model folder, alias or hub id behind a name, if it can talk."""
    model, run = model_and_run(name, runs)
    refuse_wordless(name, run)
    if learnt_values(run):
        raise ConfigError(
            f"{name} learnt values (qsft, ilql), and its player answers single prompts only: klent sample {name} "
            "PROMPT"
        )
    return model


def _labels(names: list[str]) -> list[str]:
    """What the speakers are called: their names, numbered where they are one."""
    same = len(set(names)) < len(names)
    return [f"{name} ({number})" if same else name for number, name in enumerate(names, 1)]


def _converse(sessions: "Mapping[str, Chat]", shaded: bool) -> None:
    """Until the input ends."""
    asks = sys.stdin.isatty()
    aid = f"{_HELP}; {_MIXES}" if len(sessions) > 1 else _HELP
    if asks:
        out.print(aid, style="dim", soft_wrap=True)
    while True:
        try:
            words = input("> " if asks else "")
        except EOFError:
            return
        command, _, value = words.strip().partition(" ")
        if command == "/quit":
            return
        if command == "/new":
            for session in sessions.values():
                session.forget()
        elif command == "/entropy":
            shaded = not shaded
        elif command == "/alpha":
            _mix(next(iter(sessions.values())), value.strip())
        elif words.startswith("/"):
            out.print(aid, style="dim", soft_wrap=True)
        elif words.strip():
            _answers(sessions, words, shaded)


def _mix(session: "Chat", alpha: str) -> None:
    """Sample between the two models, or stop it; what is no alpha is said."""
    try:
        session.mix(None if alpha == "off" else alpha)
    except KlentError as error:
        err.print(f"/alpha: {error}", style="yellow", soft_wrap=True)


def _answers(sessions: "Mapping[str, Chat]", words: str, shaded: bool) -> None:
    """One turn of each speaker, or of their mixture."""
    first = next(iter(sessions.values()))
    for label, session in sessions.items():
        if first.mixed and session is not first:
            return
        if len(sessions) > 1:
            out.print("mixture" if first.mixed else label, style="bold", soft_wrap=True)
        _answer(session, words, shaded)


def _answer(session: "Chat", words: str, shaded: bool) -> None:
    """One turn; what cannot be answered is said, and the conversation goes on without it."""
    try:
        answer = session.say(words, _shaded if shaded else _plain)
    except KlentError as error:
        err.print(f"{error} /new begins another conversation", style="yellow", soft_wrap=True)
        return
    print()
    if note := note_of(answer, shaded):
        out.print(note, style="dim", soft_wrap=True)


def note_of(answer: "Answer", shaded: bool) -> str:
    """What is said below an answer."""
    parts = []
    if shaded and answer.entropy:
        mean, most = sum(answer.entropy) / len(answer.entropy), max(answer.entropy)
        parts.append(
            f"entropy {mean:.2f} nats per token, at most {most:.2f}, {plural(len(answer.entropy), 'token')}"
        )
    if answer.finish == "length":
        parts.append("cut off at --max-tokens")
    return "; ".join(parts)


def _plain(piece: "Piece") -> None:
    print(visible(piece.text), end="", flush=True)


def _shaded(piece: "Piece") -> None:
    out.print(Text(piece.text, style=shade_of(piece.entropy)), end="", soft_wrap=True)
    out.file.flush()


def shade_of(entropy: float) -> str:
    """The style of a token; the more open its distribution was, the stronger.

    >>> shade_of(0.05), shade_of(0.3) == shade_of(0.4), shade_of(5.0)
    ('', True, 'on #c2410c')
    """
    return next(style for below, style in _SHADES if entropy < below)
