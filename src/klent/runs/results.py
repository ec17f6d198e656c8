"""What a finished run and an evaluation give to Python."""

import html
import warnings
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from klent.config import Recipe, load_recipe
from klent.errors import RunError
from klent.io.files import read_steps
from klent.kit.text import plural
from klent.measure.score import LABELS, is_scored, kind_of, loss_of, score_of

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedTokenizerBase

Row: TypeAlias = dict[str, Any]  # of metrics.jsonl or eval.jsonl


class Run:
    """A run's folder and what is in it.

    Args:
        path: the folder, such as ``runs/quickstart``.

    Raises:
        RunError: there is no run in it.

    Attributes:
        path: the folder.
        final: the trained model's folder, in the Hugging Face format; it exists once the run has finished.
        report: the run's page.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.final = self.path / "final"
        self.report = self.path / "report.html"
        if not (self.path / "config.yaml").is_file():
            raise RunError(f"{self.path} is not a run: it has no config.yaml")

    @cached_property
    def config(self) -> Recipe:
        """The recipe, every default filled in."""
        return load_recipe(self.path / "config.yaml")

    @property
    def metrics(self) -> list[Row]:
        """One row per step; docs/metrics.md says what is in it."""
        return list(read_steps(self.path / "metrics.jsonl", on_damage=warnings.warn))

    def frame(self) -> "pandas.DataFrame":
        """The metrics as a pandas DataFrame with the step as index, ``run.frame()["reward/mean"].plot()``.

        Raises:
            RunError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise RunError(
                "run.frame: pandas is not installed. pip install pandas; run.metrics needs none"
            ) from error
        rows = self.metrics
        return pandas.DataFrame(rows).set_index("step") if rows else pandas.DataFrame()

    @property
    def evaluations(self) -> list[Row]:
        """One row per held-out evaluation; the first is of the model before training, at step 0."""
        return list(read_steps(self.path / "eval.jsonl", on_damage=warnings.warn))

    def load(self) -> "tuple[Any, PreTrainedTokenizerBase]":
        """The trained model, in eval mode on the CPU, and its tokenizer.

        Raises:
            RunError: the run has not finished.
            ConfigError: it trained no model of text.
        """
        import torch

        from klent.models.load import load_policy
        from klent.runs.device import computes_in

        _ = self.config.text_rollout  # refuses a policy that is no model of text
        loaded = load_policy(
            str(final_folder(self)),
            dtype=computes_in(self.config.precision, torch.device("cpu")),
            trust_remote_code=self.config.trust_remote_code,
            attention=self.config.attention,
            scores=self.config.policy.scores,
        )
        return loaded.model, loaded.tokenizer

    def summary(self) -> dict[str, str]:
        """What matters most, in words: steps, mean reward and held-out score at first and at last."""
        metrics, evaluations = self.metrics, [row for row in self.evaluations if is_scored(row)]
        kind = kind_of(evaluations)
        found = [score_of(row, kind) for row in evaluations]
        losses = [loss.value for row in self.evaluations if (loss := loss_of(row))]
        values = {
            "reward": [row["reward/mean"] for row in metrics if row.get("reward/mean") is not None],
            "held-out reward" if kind == "reward" else LABELS[kind]: [
                score.value for score in found if score
            ],
            "held-out loss": losses,
        }
        summary = {"steps": f"{len(metrics)} of {self.config.steps}"}
        for name, seen in values.items():
            if seen:
                summary[name] = " → ".join(f"{value:.3f}" for value in dict.fromkeys((seen[0], seen[-1])))
        return summary

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.summary().items())
        return f"Run({str(self.path)!r}: {facts})"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{name}</td><td>{html.escape(value)}</td></tr>" for name, value in self.summary().items()
        )
        link = f'<a href="{html.escape(str(self.report))}">report</a>'
        return f"<b>{html.escape(str(self.path))}</b> {link}<table>{cells}</table>"


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on held-out problems.

    Attributes:
        reward: mean reward of the completions that could be scored; None if none could.
        reward_low: lower end of its 95% interval over problems; None where there is none.
        reward_high: upper end.
        accuracy: share of completions that are correct, where every reward is 0 or 1; else None.
        low: lower end of its 95% interval over problems (Wilson).
        high: upper end.
        entropy: of the next-token distributions sampled from, mean over tokens, nats.
        problems: how many problems.
        samples: completions of each.
        row: everything that was measured, as a row of ``eval.jsonl``; ``accuracy@0``, ... at other temperatures.
    """

    reward: float | None
    reward_low: float | None
    reward_high: float | None
    accuracy: float | None
    low: float | None
    high: float | None
    entropy: float
    problems: int
    samples: int
    row: Row

    @classmethod
    def of(cls, row: Row) -> "Evaluation":
        """From a row of ``eval.jsonl``; what was not measured is None."""
        values: Row = {field.name: row.get(field.name) for field in fields(cls)}
        return cls(**(values | {"row": row}))

    def __repr__(self) -> str:
        kind = kind_of([self.row])
        score = score_of(self.row, kind)
        return (
            (f"Evaluation({LABELS[kind]} {score}, " if score else "Evaluation(unscorable, ")
            + f"entropy {self.entropy:.3f}, {plural(self.problems, 'problem')} × {plural(self.samples, 'sample')})"
        )


def final_folder(run: Run) -> Path:
    """The trained model's folder.

    Raises:
        RunError: the run has not finished.
    """
    if not run.final.is_dir():
        raise RunError(
            f"{run.path} has no trained model yet: {len(run.metrics)} of {plural(run.config.steps, 'step')} are "
            f"done. Continue it with klent.train(name={run.path.name!r}, resume=True)"
        )
    return run.final
