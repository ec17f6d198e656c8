"""``klent eval`` and ``klent sample``: what a model can do, whether a run made it or not."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from klent.cli.common import Debug, Overrides, Runs, final_model, find_run, out
from klent.errors import ConfigError

if TYPE_CHECKING:
    from klent.config import Recipe


def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="A model, or a run (its final model).")],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Whose task, reward and sampling to use; a run has its own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")] = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Measure accuracy on held-out problems.

    ```
    klent eval runs/quickstart eval.samples=8
    klent eval smollm2-135m --recipe quickstart
    klent eval runs/quickstart task.config.max_terms=4
    ```
    """
    from klent.config import load_recipe
    from klent.console import accuracy

    folder = find_run(Path(target), runs)
    source = recipe or (folder / "config.yaml" if folder else None)
    if source is None:
        raise ConfigError(
            f"{target} is not a run, so say which problems to solve: --recipe quickstart, or a file"
        )
    model = str(final_model(folder)) if folder else target
    settings = load_recipe(source, [f"model={json.dumps(model)}", *(overrides or [])])
    if settings.eval is None:
        raise ConfigError("the recipe has eval: null; say how many problems to solve: eval.problems=64")
    if folder:
        _refuse_trained_problems(settings, load_recipe(folder / "config.yaml"))
    from klent.training.evaluate import evaluate_model

    row = evaluate_model(model, settings)
    if as_json:
        print(json.dumps(row))
        return
    measured = f"{accuracy(row)} on {row['problems']} problems x {row['samples']} samples"
    out.print(f"{model}: accuracy {measured}", soft_wrap=True)
    for key in ("reward", "entropy", "length", "unscorable"):
        if row.get(key) is not None:
            out.print(f"  {key}: {row[key]:.3f}")


def _refuse_trained_problems(settings: "Recipe", trained: "Recipe") -> None:
    """A generator's problems beyond those that a run kept out of training may be ones that it trained on."""
    from klent.config import GymSettings

    if settings.eval is None or not isinstance(settings.task, GymSettings):
        return
    kept = trained.eval.problems if trained.eval else 0
    same = (settings.task, settings.seed) == (trained.task, trained.seed)
    if same and settings.eval.problems > kept:
        raise ConfigError(
            f"eval.problems={settings.eval.problems}, but the run kept {kept} problems out of its training; "
            f"more than those would count problems that it was trained on. Lower eval.problems, or measure "
            "on another task, such as task.config.max_terms=4"
        )


def sample(
    target: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="A model, or a run (its final model).")],
    prompt: Annotated[
        str, typer.Argument(help="The prompt; - reads it from standard input.", show_default=False)
    ],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many completions.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 256,
    temperature: Annotated[float, typer.Option(help="Sampling temperature, above 0.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this mass.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among this many tokens; 0 = all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same text.")] = 0,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write completions of a prompt.

    ```
    klent sample runs/quickstart "What is 4 + 7 - 2?" -n 4
    echo "Tell me a story" | klent sample smollm2-135m - --temperature 0.7
    ```
    """
    folder = find_run(Path(target), runs)
    text = sys.stdin.read() if prompt == "-" else prompt
    from klent.training.sample import sample as write

    completions = write(
        str(final_model(folder)) if folder else target,
        text,
        count=count,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        system=system,
    )
    for number, completion in enumerate(completions, start=1):
        if count > 1:
            out.rule(f"{number}", style="dim")
        print(completion)
