"""``klent eval`` and ``klent sample``: what a model can do, whether a run made it or not."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klent.cli.common import Debug, Overrides, Runs, final_model, find_run, out
from klent.errors import ConfigError

if TYPE_CHECKING:
    from klent.config import Recipe
    from klent.runs.sample import MixedText


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
    from klent.runs.console import accuracy

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
    from klent.runs.evaluate import evaluate_model

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
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|RUN PROMPT",
            help="A model, or a run (its final model), and the prompt; - reads it from standard input.",
            show_default=False,
        ),
    ],
    policy: Annotated[
        str | None, typer.Option("--policy", help="The model, where it is not the first word.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Sample between the model and this model or run.")
    ] = None,
    alpha: Annotated[
        str,
        typer.Option("--alpha", help="The model's share: 0.5, chernoff, snr, kl_budget=N, entropy=N, ess=F."),
    ] = "chernoff",
    target_prompt: Annotated[
        str | None,
        typer.Option("--target-prompt", help="What the target is asked instead; {prompt} is the prompt."),
    ] = None,
    target_temperature: Annotated[
        float | None, typer.Option("--target-temperature", help="The target's own; default the same.")
    ] = None,
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
    klent sample --policy smollm2-135m --target runs/quickstart --alpha chernoff "What is 4 + 7 - 2?"
    klent sample smollm2-135m "What is 4 + 7?" --target-prompt "{prompt} (it is 11)" --alpha 0.5
    ```

    With a target, alpha and KL of every token stand under the text, green where the mixture is the model.
    """
    named = [*([policy] if policy else []), *words]
    if len(named) != 2:
        raise ConfigError(
            f"expected a model and a prompt, got {len(named)}: {', '.join(named)}; quote the prompt"
        )
    model, text = _model(named[0], runs), sys.stdin.read() if named[1] == "-" else named[1]
    options: dict[str, Any] = {
        "count": count,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "system": system,
    }
    if target is None and target_prompt is None and target_temperature is None:
        from klent.runs.sample import sample as write

        for number, completion in enumerate(write(model, text, **options), start=1):
            _heading(number, count)
            print(completion)
        return
    from klent.runs.sample import sample_mixture

    mixed = sample_mixture(
        model,
        _model(target, runs) if target else model,
        text,
        alpha=alpha,
        target_prompt=target_prompt,
        target_temperature=target_temperature,
        **options,
    )
    for number, one in enumerate(mixed, start=1):
        _heading(number, count)
        _show_mixed(one)


def _model(name: str, runs: Path) -> str:
    folder = find_run(Path(name), runs)
    return str(final_model(folder)) if folder else name


def _heading(number: int, count: int) -> None:
    if count > 1:
        out.rule(f"{number}", style="dim")


def _show_mixed(one: "MixedText") -> None:
    """The text, its tokens with alpha and KL, and a line of means."""
    from klent.cli.tokens import show_tokens

    print(one.text)
    print()
    rows = (("alpha", one.alpha), ("KL", one.kl_policy))
    show_tokens(out, one.tokens, rows, shade=one.kl_policy)
    count = len(one.tokens)
    means = [sum(values) / count for values in (one.alpha, one.kl_policy, one.kl_target)]
    out.print(
        f"{count} tokens: alpha {means[0]:.3f}, KL to the model {means[1]:.3f} and to the target "
        f"{means[2]:.3f} nats a token, importance weight of the whole exp({sum(one.log_weight):.2f})",
        style="dim",
        soft_wrap=True,
    )
