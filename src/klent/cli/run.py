"""``klent train``, ``resume``, ``export`` and ``report``: the verbs that write a run folder."""

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from klent.cli.common import (
    Debug,
    Overrides,
    Runs,
    Yes,
    confirm_code,
    err,
    out,
    print_yaml,
    run_folder,
    run_or_log,
)
from klent.cli.watch import watched
from klent.errors import ConfigError

if TYPE_CHECKING:
    from klent.config import Recipe
    from klent.tasks import Task
    from klent.tasks.first_call import Tried


Watch = Annotated[
    bool, typer.Option("--watch", help="Serve a page that follows the run; see `klent watch --help`.")
]


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file, or the name of a shipped one.", show_default=False)
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe and the plan; write nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run if its folder exists.")] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Rename an existing run folder to NAME.1, NAME.2, ... first."),
    ] = False,
    watch: Watch = False,
    yes: Yes = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Train a model with a recipe.

    Everything is checked before a model is loaded. Ctrl-C finishes the step, saves and stops with exit code
    130 (143 after SIGTERM); `klent resume` continues from there. The run's folder is RUNS/NAME, its report
    RUNS/NAME/report.html.

    A recipe overrides the settings of its method, and KEY=VALUE overrides both. A term that you set in `loss` or
    `token_reward` is added to those of the method, and null removes one. `advantage`, `reward` and `task` are
    replaced as a whole.

    ```
    klent train quickstart
    klent train quickstart --dry-run
    klent train quickstart --watch
    klent train my.yaml model=./my-model task.data=prompts.jsonl reward=my.py:score
    klent train quickstart name=rloo method=rloo optimizer.lr=1e-5
    klent train quickstart name=held loss.kl_in_loss.coef=0.05
    torchrun --nproc-per-node 2 -m klent train quickstart
    ```
    """
    from klent.config import load_recipe
    from klent.kit.world import is_follower
    from klent.runs.api import refuse_another_recipe, step_aside

    settings = load_recipe(recipe, overrides or [])
    run = runs / settings.name
    if dry_run:
        _show_plan(settings, run)
        return
    if resume and fresh:
        raise ConfigError("--resume continues the existing run, --fresh starts another; choose one")
    if fresh and not is_follower() and (aside := step_aside(run)):
        out.print(f"moved the earlier {run} to {aside}", soft_wrap=True)
    resume = resume and (run / "config.yaml").is_file()
    if resume:
        confirm_code(run, yes)
        refuse_another_recipe(settings, run)
    arguments = ["klent", "train", recipe, *(overrides or [])]
    if runs != Path("runs"):
        arguments += ["--runs", str(runs)]
    with watched(run, on=watch and not is_follower()):
        _train(settings, run, command=shlex.join(arguments), resume=resume)


def resume(
    run: Annotated[Path, typer.Argument(help="The run's folder, or its name.", show_default=False)],
    overrides: Overrides = None,
    watch: Watch = False,
    yes: Yes = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Continue a stopped run from its newest intact checkpoint, or train a finished run for more steps.

    The final weights and metrics are those of a run without the stop, bit for bit. KEY=VALUE changes what may
    change in a run: steps, optimizer, eval, track, checkpoint and limits; `steps=+20` adds 20
    steps. config.yaml and run.json keep the change. Anything else, also another data file or model, is refused.

    Code that the run names and that is not what the run was started with (a loss, a reward) is shown, and runs
    once you confirm it: in a terminal by an answer, elsewhere by --yes.

    ```
    klent resume runs/quickstart
    klent resume quickstart steps=+20 optimizer.lr=1e-6 --watch
    ```
    """
    from klent.config import load_recipe
    from klent.kit.world import is_follower

    folder = run_folder(run, runs)
    if any(word.startswith("name=") for word in overrides or []):
        raise ConfigError(
            f"a run keeps its name; rename its folder, {folder}, or train another with name=..."
        )
    confirm_code(folder, yes)
    words = ["klent", "resume", str(folder), *(overrides or [])]
    settings = load_recipe(folder / "config.yaml", _in_all(overrides or [], folder))
    with watched(folder, on=watch and not is_follower()):
        _train(settings, folder, command=shlex.join(words), resume=True)


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder, or its name.", show_default=False)],
    folder: Annotated[
        Path | None, typer.Argument(help="Where to write the model; default: RUN/step-N.", show_default=False)
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="The same as the second argument.", show_default=False)
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="Step of the checkpoint; default: the newest.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Of a LoRA run: the merged weights alone, without `adapter/`.")
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="float32, bfloat16 or float16; default: the recipe's.", show_default=False
        ),
    ] = None,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also write model.gguf into the folder, for llama.cpp.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="OWNER/NAME",
            help="Upload the folder to the Hugging Face Hub.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="With --push: a new repository is for everybody; default: private."),
    ] = False,
    yes: Yes = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write a checkpoint as a model folder like `final/`, to sample from, to evaluate, or to load in other programs.

    The run may be running, stopped or finished. A LoRA adapter is added to the weights in float32, the sum is
    rounded once to the type that is written, and without --merge the adapter is also saved by itself in `adapter/`.
    README.md is the model's card: what was trained on what, evaluations with intervals, the command, the recipe, and
    the licence of the base model, which binds this one too.

    GGUF is written for Llama, SmolLM2, Qwen2 and Qwen3, in the type of the weights; of others it is refused. --push
    takes the token of `hf auth login` or HF_TOKEN. Look at the card before: it has the command and the recipe.

    ```
    klent export runs/quickstart --step 20
    klent export my-lora --merge --to ./my-model --dtype bfloat16
    klent eval runs/quickstart/step-20
    klent export quickstart ./my-model
    klent export my-lora --merge --to ./my-model --dtype float16 --gguf
    klent export my-lora --merge --to ./my-model --push me/my-model
    ```
    """
    from klent.models.hub import open_hub, push_folder
    from klent.runs.export import export_checkpoint

    if folder is not None and to is not None:
        raise ConfigError(f"{folder} and --to {to} name two folders; give one")
    if public and push is None:
        raise ConfigError(
            "--public says who may see what --push uploads; give --push OWNER/NAME, or leave it out"
        )
    source = run_folder(run, runs)
    confirm_code(source, yes)
    hub = open_hub(push) if push is not None else None
    target = export_checkpoint(
        source,
        folder or to,
        step=step,
        merge=merge,
        dtype=dtype,
        gguf=gguf,
        on_damage=lambda line: err.print(line, style="yellow"),
    )
    out.print(f"model: {target}", soft_wrap=True)
    if hub is not None:
        address = push_folder(hub, target, public=public, message=f"{source.name}, by klent export")
        out.print(f"pushed: {address}", soft_wrap=True)


def report(
    run: Annotated[
        Path, typer.Argument(help="The run's folder, or its name; a log of TRL or verl.", show_default=False)
    ],
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write the report of a run again from its files, also while it is running.

    A log folder of TRL (trainer_state.json) or verl (its file logger's JSON Lines, or TensorBoard's files)
    works too: you get a report with everything that its columns allow.

    ```
    klent report runs/quickstart
    klent report ../trl-output
    ```
    """
    from klent.report import write_report

    out.print(f"report: {write_report(run_or_log(run, runs))}", soft_wrap=True)


def _train(settings: "Recipe", run: Path, *, command: str, resume: bool) -> None:
    from klent.runs.console import TrainConsole
    from klent.runs.train import train as run_training

    console = TrainConsole(out)
    try:
        run_training(settings, run, command=command, resume=resume, console=console)
    finally:
        console.close()
    if console.stopped_by:  # as a shell says it, so that `klent train ... && ...` does not go on
        raise typer.Exit(128 + console.stopped_by)


def _in_all(overrides: list[str], run: Path) -> list[str]:
    """``steps=+20`` as the number of steps in all."""
    if not any(word.startswith("steps=+") for word in overrides):
        return overrides
    from klent.runs.checkpoint import peek_newest

    newest = peek_newest(run)
    done = newest[0] if newest else 0
    added = [re.fullmatch(r"steps=\+([0-9]{1,9})", word) for word in overrides]
    return [f"steps={done + int(m[1])}" if m else word for m, word in zip(added, overrides, strict=True)]


def _try_rewards(settings: "Recipe", task: "Task") -> "list[Tried]":
    """What each reward says of the first problem."""
    from klent.runs.evaluate import eval_rewards
    from klent.runs.judges import open_judges
    from klent.tasks import Scorer
    from klent.tasks.starts import EnvironmentTask

    judges = eval_rewards(settings) if settings.eval else None
    found = [task.check()] if isinstance(task, EnvironmentTask) else []
    for rewards in (settings.reward, judges if judges != settings.reward else None):
        if rewards:
            with Scorer(rewards, task, judge=open_judges(settings)) as scorer:
                found += scorer.check()
    return found


def _show_plan(settings: "Recipe", run: Path) -> None:
    from klent.config import dump_recipe
    from klent.runs.evaluate import examined_task
    from klent.runs.plan import describe_plan
    from klent.tasks import load_task

    heldout = settings.eval.problems if settings.eval else 0
    task = load_task(settings.task, seed=settings.seed, heldout=heldout)
    print_yaml(dump_recipe(settings))
    for line in describe_plan(settings):
        out.print(f"# {line}", soft_wrap=True)
    for tried in _try_rewards(settings, examined_task(settings, task)):
        out.print(f"# {'warning' if tried.doubt else 'tried'}: {tried.text}", soft_wrap=True)
    out.print(f"# first prompt: {json.dumps(task.train(0).prompt, ensure_ascii=False)}", soft_wrap=True)
    exists = " (it exists)" if run.exists() else ""
    out.print(f"# would write {run}{exists}; this was a dry run", soft_wrap=True)
