"""``klent eval`` and ``klent sample``: how good a model is, and what it writes."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from klent.cli.common import (
    Behaviour,
    Beta,
    Debug,
    Overrides,
    Runs,
    Yes,
    confirm_code,
    err,
    learnt_values,
    model_and_run,
    out,
    recipe_of_run,
    refuse_tilt,
    refuse_wordless,
    show,
)
from klent.errors import ConfigError
from klent.kit.text import plural

if TYPE_CHECKING:
    from klent.config import Recipe
    from klent.kit.tables import Row
    from klent.measure.score import Kind
    from klent.runs.sample import MixedText


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN", help="A model, or a run (its final model), or a model folder in a run."
        ),
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="Recipe whose task, reward and sampling are used; default: the run's own."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")] = False,
    yes: Yes = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Measure the mean reward on held-out problems; it is the accuracy if every reward is 0 or 1.

    For a run on given texts without a reward: the loss on held-out texts, or the share of pairs in the right order.

    At the recipe's temperature, and at those of eval.temperatures; 0 is greedy.

    ```
    klent eval runs/quickstart eval.samples=8 eval.temperatures=[0,0.5]
    klent eval runs/quickstart/step-20
    klent eval smollm2-135m --recipe quickstart
    klent eval runs/quickstart task.config.max_terms=4
    klent eval runs/values bellman.beta=32 eval.play.env=maze
    ```
    """
    from klent.config import load_recipe
    from klent.config.load import read_values

    model, folder = model_and_run(target, runs)
    source = recipe or (folder / "config.yaml" if folder else None)
    if source is None:
        raise ConfigError(
            f"{target} is not a run, so it names no problems. Pass --recipe quickstart, or a file"
        )
    if folder:
        confirm_code(folder, yes)
    named = "model" in read_values(source)  # which may be the model of the data
    settings = load_recipe(source, [*([] if named else [f"model={json.dumps(model)}"]), *(overrides or [])])
    if settings.eval is None:
        raise ConfigError("the recipe has eval: null; set the number of problems: eval.problems=64")
    if folder:
        _refuse_trained_problems(settings, load_recipe(folder / "config.yaml"))
    from klent.runs.evaluate import evaluate_model
    from klent.runs.replayed import evaluate_replayed, is_replayed

    measure = evaluate_replayed if is_replayed(settings) else evaluate_model
    row = measure(model, settings, note=lambda text: err.print(f"warning: {text}", soft_wrap=True))
    if as_json:
        print(json.dumps(row))
    else:
        _show_evaluation(model, row)


def _show_evaluation(model: str, row: "Row") -> None:
    """The score at every temperature with its interval, and the rest of the row's numbers."""
    from klent.measure.score import LABELS, is_judged, is_scored, kind_of, loss_of, score_of, temperatures_of
    from klent.runs.console import unscored

    kind = kind_of([row])
    noun = "problem" if "samples" in row else "pair" if is_judged(row) else "completion"
    times = f" x {plural(int(str(row['samples'])), 'sample')}" if "samples" in row else ""
    out.print(f"{model}: {plural(int(str(row['problems'])), noun)}{times}", soft_wrap=True)
    if loss := loss_of(row):
        out.print(f"  loss: {loss} nats per token, perplexity {row['perplexity']:.3g}")
    if is_judged(row) and not is_scored(row):
        out.print("  no completion could be scored")
    kinds: list[Kind] = ["accuracy", "reward"] if kind == "accuracy" else [kind]
    for at, words in temperatures_of(row).items():
        for kind in kinds if is_scored(row) else []:
            score = score_of(row, kind, at)
            one = " (one sample)" if words == "greedily" else ""
            out.print(f"  {LABELS[kind]} {words}{one}: {'not scored' if score is None else score}")
    for key in (
        "preference/margin",
        "preference/chosen",
        "preference/rejected",
        "entropy",
        "length",
        "unscorable",
        "calibration/error",
        "calibration/log_loss",
    ):
        if row.get(key) is not None:
            out.print(f"  {key}: {row[key]:.3f}")
    for text in unscored(row):
        out.print(f"  {text}", soft_wrap=True)


def _refuse_trained_problems(settings: "Recipe", trained: "Recipe") -> None:
    """A run may have trained on the problems of a generator that it did not hold out."""
    if settings.eval is None or not settings.task.generated:
        return
    kept = trained.eval.problems if trained.eval else 0
    same = (settings.task, settings.seed) == (trained.task, trained.seed)
    if same and settings.eval.problems > kept:
        raise ConfigError(
            f"eval.problems={settings.eval.problems}, but the run held out only {kept} problems: it may have "
            "trained on the others. Lower eval.problems, or measure on another task, such as "
            "task.config.max_terms=4"
        )


def check_temperature(value: float | None) -> float | None:
    """Refuse what is no temperature."""
    if value is not None and not (0 <= value < math.inf):  # NaN is neither
        raise typer.BadParameter(f"{value:g} is no temperature: give a finite number, at least 0")
    return value


def check_probability(value: float) -> float:
    """Refuse what is not in (0, 1]."""
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{value:g} is not in (0, 1]; 1 samples among all tokens")
    return value


def sample(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|RUN PROMPT",
            help="A model, or a run (its final model), and the prompt; - reads it from standard input.",
            show_default=False,
        ),
    ],
    policy: Annotated[
        str | None, typer.Option("--policy", help="The model, if it is not the first argument.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Sample between the model and this model or run.")
    ] = None,
    alpha: Annotated[
        str,
        typer.Option(
            "--alpha", help="The model's weight: 0.5, chernoff, snr, kl_budget=N, entropy=N, ess=F."
        ),
    ] = "chernoff",
    target_prompt: Annotated[
        str | None,
        typer.Option("--target-prompt", help="Prompt for the target instead; {prompt} is the prompt."),
    ] = None,
    target_temperature: Annotated[
        float | None,
        typer.Option(
            "--target-temperature",
            callback=check_temperature,
            help="Temperature of the target; default: the same.",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, max=100_000, help="How many completions.")
    ] = 1,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Longest completion, in tokens.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(callback=check_temperature, help="Sampling temperature; 0 is greedy.")
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(
            callback=check_probability,
            help="Sample among the most likely tokens that hold this probability; 1 = all.",
        ),
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, help="Sample among this many most likely tokens; 0 = all.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    beta: Beta = None,
    behaviour: Behaviour = None,
    yes: Yes = False,
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

    For a run that learnt values (qsft, ilql) the player of these values writes, at temperature 1; see --beta.

    With a target, the text is followed by alpha and KL per token, green where the mixture equals the model.
    """
    name, text = _model_and_prompt([*([policy] if policy else []), *arguments])
    model, run = model_and_run(name, runs)
    refuse_wordless(name, run)
    refuse_tilt(name, run, beta, behaviour)
    options: _Options = {
        "count": count,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "system": system,
    }
    if target is None and target_prompt is None and target_temperature is None:
        from klent.runs.sample import sample as complete

        opened = None
        if run is not None and learnt_values(run):
            from klent.runs.targets import open_model

            opened = open_model(model, recipe_of_run(run, yes=yes, beta=beta, behaviour=behaviour))
        for number, written in enumerate(complete(model, text, opened=opened, **options), start=1):
            _heading(number, count)
            show(written)
        return
    if learnt_values(run):
        raise ConfigError(
            f"--target: {name} learnt values (qsft, ilql), and their player cannot be mixed with another model; "
            "remove it"
        )
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
    for number, completion in enumerate(mixed, start=1):
        _heading(number, count)
        _show_mixed(completion)


class _Options(TypedDict):
    """Options that both ways of sampling take."""

    count: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    system: str | None


def _model_and_prompt(arguments: list[str]) -> tuple[str, str]:
    if len(arguments) != 2:
        given = f"{len(arguments)}: {', '.join(arguments)}"
        raise ConfigError(f"expected a model and a prompt, got {given}; quote the prompt")
    model, prompt = arguments
    return model, sys.stdin.read() if prompt == "-" else prompt


def _model(name: str, runs: Path) -> str:
    """The final model of a run, or a model folder in it, or the name as it is."""
    return model_and_run(name, runs)[0]


def _heading(number: int, count: int) -> None:
    if count > 1:
        out.rule(f"{number}", style="dim")


def _show_mixed(completion: "MixedText") -> None:
    """The text, its tokens with alpha and KL, and a line of means."""
    from klent.cli.tokens import show_tokens

    show(completion.text)
    print()
    rows = (("alpha", completion.alpha), ("KL", completion.kl_policy))
    show_tokens(out, completion.tokens, rows, shade=completion.kl_policy)
    count, weight = len(completion.tokens), sum(completion.log_weight)
    means = [sum(values) / count for values in (completion.alpha, completion.kl_policy, completion.kl_target)]
    out.print(
        f"{plural(count, 'token')}: alpha {means[0]:.3f}, KL to the model {means[1]:.3f} and to the target "
        f"{means[2]:.3f} nats per token, importance weight of the sequence exp({weight:.2f})",
        style="dim",
        soft_wrap=True,
    )
