"""The loop. One step, from prompts to what the update did:

    prompts -> engine -> rollouts -> rewards -> batch -> advantages -> update -> what changed -> one row of
    metrics

It does not know which algorithm it runs (that is klent.training.objective), nor where completions come from
(an Engine), nor what they are worth (a Scorer).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from klent.config import DatasetRollout, Recipe, dump_recipe
from klent.control.early_stop import best_row, is_over
from klent.control.mixing import check_alpha
from klent.control.schedule import derive_seed
from klent.control.thermostat import State
from klent.errors import RunError
from klent.io.files import append_line, read_jsonl, write_atomic
from klent.io.folders import replace_folder
from klent.measure.certainty import extra_measures
from klent.measure.change import distribution_change, probe_rows
from klent.measure.diagnostics import fork_words
from klent.measure.evaluate import eval_rewards, evaluate
from klent.measure.metrics import rollout_metrics, time_metrics, update_metrics
from klent.measure.roofline import Floor
from klent.measure.watch import Watch
from klent.models.load import save_model
from klent.report import write_report
from klent.rollout.engine import Rollout
from klent.runs.build import Parts, build_parts
from klent.runs.checkpoint import flatten_optimizer, load_newest, restore_optimizer, save_checkpoint
from klent.runs.console import TrainConsole
from klent.runs.folder import RunFolder
from klent.runs.interrupt import StopRequest
from klent.runs.record import finish_record, start_record
from klent.runs.samples import sample_rows
from klent.runs.trackers import Trackers
from klent.streams.batch import Batch, make_batch
from klent.tasks import Scorer, Scores, Task, load_task
from klent.tasks.callables import Function
from klent.training.released import narrow, widen
from klent.training.update import UpdateResult

PROBE_PROMPTS = 2  # prompts whose completions are measured again after the update


def train(
    recipe: Recipe,
    run: Path,
    *,
    command: str,
    resume: bool = False,
    measure: bool = True,
    console: TrainConsole | None = None,
    rewards: Mapping[str, Function] | None = None,
) -> Path:
    """Run a recipe, or go on with a run, until its last step; all that comes of it is in the run folder.

    Args:
        recipe: what to run; of a resumed run, its own ``config.yaml``.
        run: the run folder.
        command: the command line that repeats the run, for the report.
        resume: go on from the newest whole checkpoint of an existing folder.
        measure: False = the problems of ``eval`` are kept out of training, and not measured.
        console: where to say what happens; prints to standard output by default.
        rewards: by NAME the function of each reward ``python:NAME``, which no file holds.

    Returns:
        The run folder.

    Raises:
        RunError: the folder is in use, or exists and ``resume`` is False; every completion was unscorable, or
            no gradient finite, for as many steps in a row as ``limits`` allows. What was reached is saved.
    """
    console = console or TrainConsole()
    task = load_task(
        recipe.task,
        seed=recipe.seed,
        heldout=recipe.eval.problems if recipe.eval else 0,
        needed=("completion",) if isinstance(recipe.rollout, DatasetRollout) else (),
    )
    check_alpha(recipe, task)
    with RunFolder.open(run) if resume else RunFolder.create(run) as folder:
        scorer = Scorer(recipe.reward, task, folder.rewards_log, rewards) if recipe.reward else None
        own = recipe.eval is not None and recipe.eval.reward is not None
        judge = Scorer(eval_rewards(recipe) or (), task, folder.rewards_log, rewards) if own else scorer
        try:
            for each in dict.fromkeys((scorer, judge)):
                if each:
                    each.check()
            trainer = Trainer(recipe, folder, task, scorer, console, judge=judge, measure=measure)
            if not resume:  # all that could be refused has been: from here on the folder is a run
                write_atomic(folder.config, dump_recipe(recipe))
            start_record(run, command=command)
            trainer.fit()
        finally:
            for each in (scorer, judge):
                if each:
                    each.close()
            console.close()
    return run


@dataclass
class Progress:
    """What a run remembers from step to step, and what a checkpoint therefore holds beside tensors."""

    step: int = 0
    unscorable: int = 0  # steps in a row
    nonfinite: int = 0
    over: bool = False  # eval.early_stop has ended the run


class Trainer:
    """One run of one recipe in one folder; :meth:`fit` does it all, :meth:`step` is the part to read."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        task: Task,
        scorer: Scorer | None,
        console: TrainConsole,
        *,
        judge: Scorer | None = None,
        measure: bool = True,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.task = task
        self.scorer = scorer
        self.judge = judge  # of held-out answers; the same as scorer unless eval.reward names another
        self.measures = measure
        self.console = console
        self.progress = Progress()
        self.parts: Parts = build_parts(
            recipe, progress=lambda done, of: console.phase("rollout", done, of), note=console.warn
        )
        self.trackers = Trackers(recipe, folder.path)
        self.seconds: dict[str, float] = {}
        replayed = isinstance(recipe.rollout, DatasetRollout)
        self.floor = None if replayed else Floor.of(self.parts.loaded.model)
        self.told: set[str] = set()

    def fit(self) -> None:
        """Every step that is left, then ``final/`` and the report."""
        self._restore()
        self.watch = Watch(read_jsonl(self.folder.metrics))
        recipe, progress = self.recipe, self.progress
        self.console.start(recipe, done=progress.step)
        with StopRequest(self.console.stopping) as stop:
            self._evaluate(0)
            while progress.step < recipe.steps and not progress.over and not stop.asked:
                row, batch, result = self.step(progress.step + 1)
                self._record(row, batch, result)
                progress.step += 1
                self._guard(row)
                every = recipe.eval.every if recipe.eval else 0
                if every and progress.step % every == 0:
                    self._evaluate(progress.step)
                due = recipe.checkpoint.every and progress.step % recipe.checkpoint.every == 0
                if due or stop.asked or progress.over or progress.step == recipe.steps:
                    self._save()
        if progress.over or progress.step == recipe.steps:
            self._evaluate(progress.step)
            self._save_final()
        self.trackers.close()
        finish_record(self.folder.path, self.parts.loaded.model)
        write_report(self.folder.path)
        rows = {row["step"]: row for row in read_jsonl(self.folder.eval)}
        after = rows.get(self._best(progress.step))
        self.console.finish(self.folder.path, rows.get(0), after, early=progress.over)

    def step(self, number: int) -> tuple[dict[str, Any], Batch, UpdateResult]:
        """One training step; everything random in it follows from the recipe's seed and ``number``."""
        recipe, parts = self.recipe, self.parts
        torch.manual_seed(derive_seed(recipe.seed, "torch", number))
        self.seconds = {"rollout": 0.0, "score": 0.0, "train": 0.0}
        started = time.perf_counter()

        if parts.thermostat is not None:
            parts.thermostat.apply()
        if parts.mixer is not None:
            parts.mixer.apply(number)
        first = (number - 1) * recipe.prompts_per_step
        prompts = [self.task.train(first + i) for i in range(recipe.prompts_per_step)]
        with self._timed("rollout"):
            seed = derive_seed(recipe.seed, "rollout", number)
            rollouts = parts.engine.generate(prompts, group_size=recipe.group_size, seed=seed)
        with self._timed("score"):
            scores = self._score(rollouts)
        batch = make_batch(
            rollouts,
            scores.reward if scores else [float("nan")] * len(rollouts),
            group_size=recipe.group_size,
        )
        with self._timed("train"):
            self._add_streams(batch)
            if parts.mixer is not None:
                parts.mixer.weigh(batch)
            parts.objective.estimate_advantage(batch)
            released = recipe.update.released_code
            result = parts.updater.run(
                widen(batch, parts.loaded.tokenizer.pad_token_id) if released else batch,
                seed=derive_seed(recipe.seed, "update", number),
                progress=lambda done, of: self.console.phase("train", done, of),
            )
            result = narrow(result) if released else result
        row = {"step": number, **rollout_metrics(batch, scores), **update_metrics(batch, result)}
        row |= self._change(batch, result)
        if parts.mixer is not None:
            row |= parts.mixer.read(batch)
        if parts.thermostat is not None:
            row |= parts.thermostat.read(number, row["policy/entropy"], row["policy/entropy_delta"])
        row["optimizer/lr"] = parts.updater.learning_rate(parts.updater.steps_done - 1)
        self.seconds["step"] = time.perf_counter() - started
        return row | time_metrics(batch, result, self.seconds, self.floor), batch, result

    def _score(self, rollouts: Sequence[Rollout]) -> Scores | None:
        if self.scorer is None or isinstance(self.recipe.rollout, DatasetRollout):
            return None
        scores = self.scorer.score(
            [r.prompt for r in rollouts], [r.text for r in rollouts], [r.finish for r in rollouts]
        )
        for problem, count in scores.problems.items():
            if problem not in self.told:
                self.told.add(problem)
                self.console.warn(f"{count} of {len(rollouts)} completions unscorable: {problem}")
        return scores

    def _add_streams(self, batch: Batch) -> None:
        """Log-probabilities that the objective asks for and that the update itself does not bring."""
        parts, update = self.parts, self.recipe.update
        rows = range(len(batch.mask))
        if parts.objective.token_rewards or update.epochs * update.minibatches > 1:
            before = parts.updater.measure(batch, rows)
            batch.streams |= {"logp_old": before["logp"], "entropy_old": before["entropy"]}
        if parts.reference is not None:
            with parts.reference() as policy:
                batch.streams["logp_ref"] = parts.updater.measure(batch, rows, policy)["logp"]

    def _change(self, batch: Batch, result: UpdateResult) -> dict[str, float]:
        """What the update did to the distribution, on the tokens of a few prompts."""
        rows = probe_rows(batch, result, prompts=PROBE_PROMPTS)
        after = self.parts.updater.measure(batch, rows) if rows else result.before
        return distribution_change(batch, rows, result.before, after)

    def _record(self, row: dict[str, Any], batch: Batch, result: UpdateResult) -> None:
        row |= self.watch.see(row)
        append_line(self.folder.metrics, row)
        forks = fork_words(batch, self.parts.loaded.tokenizer)
        append_line(self.folder.forks, {"step": row["step"], "forks": forks})
        tokenizer = self.parts.loaded.tokenizer
        for sample in sample_rows(row["step"], batch, result.coefficient, tokenizer, chosen=result.chosen):
            append_line(self.folder.samples, sample)
        self.trackers.log(row)
        self.console.step(row)
        for finding in self.watch.news():
            self.console.warn(finding)

    def _guard(self, row: dict[str, Any]) -> None:
        """Stop a run that goes on for nothing; the last checkpoint is from before it did."""
        progress, limits = self.progress, self.recipe.limits
        progress.unscorable = progress.unscorable + 1 if row.get("reward/unscorable") == 1.0 else 0
        progress.nonfinite = progress.nonfinite + 1 if row["update/skipped"] else 0
        kept = sorted(path.name for path in self.folder.checkpoints.glob("[0-9]*"))
        saved = f"The newest checkpoint is checkpoints/{kept[-1]}." if kept else "There is no checkpoint yet."
        if progress.unscorable >= limits.unscorable_steps:
            reasons = "; ".join(sorted(self.told)) or "the rewards returned nothing"
            raise RunError(
                f"no completion could be scored for {progress.unscorable} steps in a row (step "
                f"{row['step']}): {reasons}. Mend the reward, then `klent resume {self.folder.path}`. {saved}"
            )
        if progress.nonfinite >= limits.nonfinite_steps:
            raise RunError(
                f"loss or gradient was not finite for {progress.nonfinite} steps in a row (step "
                f"{row['step']}). Those updates were left out. Lower optimizer.lr, or look at the loss. "
                f"{saved}"
            )

    def _evaluate(self, step: int) -> None:
        """One row of eval.jsonl, unless it is there already."""
        path = self.folder.eval
        if (
            self.recipe.eval is None
            or not self.measures
            or self.judge is None
            or any(row["step"] == step for row in read_jsonl(path))
        ):
            return
        start = next((row.get("vote") for row in read_jsonl(path) if row["step"] == 0), None)
        row = evaluate(
            self.parts.sampler,
            self.judge,
            self.task.heldout(self.recipe.eval.problems),
            samples=self.recipe.eval.samples,
            seed=derive_seed(self.recipe.seed, "eval"),
            step=step,
            more=extra_measures(
                self.recipe,
                self.parts.loaded,
                self.judge,
                derive_seed(self.recipe.seed, "eval"),
                start=start,
            ),
        )
        append_line(path, row)
        self.console.eval(row)
        if (early := self.recipe.eval.early_stop) is not None:
            rows = list(read_jsonl(path))
            self.progress.over = is_over(rows, early.signal, early.margin, early.patience)
            if self._best(step) == step:
                save_model(self.parts.loaded.model, self.parts.loaded.tokenizer, self.folder.best)

    def _best(self, step: int) -> int:
        """The step whose weights ``final/`` holds: of the best evaluation where the run stops early."""
        early = self.recipe.eval.early_stop if self.recipe.eval else None
        if early is None:
            return step
        return int(best_row(list(read_jsonl(self.folder.eval)), early.signal, early.margin)["step"])

    def _save_final(self) -> None:
        if self.folder.best.is_dir():
            replace_folder(self.folder.best, self.folder.final)
        elif self._best(self.progress.step) == self.progress.step:
            save_model(self.parts.loaded.model, self.parts.loaded.tokenizer, self.folder.final)

    def _save(self) -> None:
        updater = self.parts.updater
        self.console.phase("saving")
        save_checkpoint(
            self.folder.path,
            self.progress.step,
            tensors={
                "model": {name: p.detach() for name, p in self.parts.trainable.items()},
                "optimizer": flatten_optimizer(updater.optimizer, self.parts.trainable),
            },
            state={
                "progress": vars(self.progress),
                "optimizer_steps": updater.steps_done,
                "thermostat": vars(self.parts.thermostat.state) if self.parts.thermostat else None,
                "policy_reward": self.parts.mixer.reward if self.parts.mixer else None,
                "offsets": self.folder.offsets(),
            },
            keep=self.recipe.checkpoint.keep,
        )

    def _restore(self) -> None:
        """Go back to the newest whole checkpoint, or to the very beginning where there is none."""
        found = load_newest(self.folder.path, on_damage=self.console.warn)
        if found is None:
            self.folder.truncate_logs({}, on_damage=self.console.warn)
            return
        with torch.no_grad():
            for name, value in found.tensors["model"].items():
                self.parts.trainable[name].copy_(value)
        restore_optimizer(self.parts.updater.optimizer, self.parts.trainable, found.tensors["optimizer"])
        self.progress = Progress(**found.state["progress"])
        if self.parts.thermostat is not None:
            self.parts.thermostat.state = State(**found.state["thermostat"])
        if self.parts.mixer is not None:
            self.parts.mixer.reward = found.state.get("policy_reward", 0.0)
        self.parts.updater.steps_done = found.state["optimizer_steps"]
        self.folder.truncate_logs(found.state["offsets"], on_damage=self.console.warn)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self.console.phase(phase)
        started = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - started
