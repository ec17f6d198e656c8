"""Preferences made from a known reward, two answers to each prompt and labels that may be wrong: ``klent label``."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klent.config import Recipe
from klent.errors import ConfigError, RunError
from klent.io.files import append_line, read_jsonl, write_atomic
from klent.kit.seeds import derive_seed
from klent.kit.text import plural
from klent.runs.engines import build_sampler
from klent.runs.evaluate import load_on_device
from klent.runs.judges import open_judges
from klent.streams.episode import Episode
from klent.tasks import Prompt, Scorer, load_task
from klent.tasks.preferences import SIDES

AT_ONCE = 32  # prompts answered together; fixed, because what is sampled depends on it
TRIES = 20  # prompts tried for each pair wanted, before the answers are said to be too much alike


@dataclass(frozen=True)
class Labels:
    """How answers become labels.

    Attributes:
        pairs: how many.
        noise: temperature of the choice: the first of two answers is preferred with probability
            ``sigmoid((r_first - r_second) / noise)``, Bradley-Terry's; 0 = the one with more reward.
        flip: share of the labels that are turned round afterwards.
    """

    pairs: int
    noise: float = 0.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ConfigError(f"--pairs {self.pairs}: ask for at least one")
        if not 0 <= self.noise < math.inf:
            raise ConfigError(f"--noise {self.noise:g}: a temperature is 0 or more")
        if not 0 <= self.flip < 0.5:
            raise ConfigError(f"--flip {self.flip:g}: a share of wrong labels is from 0 to less than 0.5")

    def first_is_better(self, first: float, second: float, drawn: random.Random) -> bool:
        """The label of two rewards that differ.

        >>> Labels(1).first_is_better(1.0, 0.0, random.Random(0))
        True
        """
        better = first > second
        if self.noise:
            better = drawn.random() < (1 + math.tanh((first - second) / self.noise / 2)) / 2  # sigmoid
        return better != (drawn.random() < self.flip)


Row = dict[str, Any]


def label_pairs(
    recipe: Recipe,
    labels: Labels,
    *,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Row]:
    """Sample two answers to training prompts, and write which is preferred, for ``task: {pairs: FILE}``.

    Two answers with one text, with one reward, or of which one cannot be scored, make no pair: the next prompt is
    taken. Rows have ``prompt``, ``chosen``, ``rejected``, what the reward says of both (``score_chosen``,
    ``score_rejected``; a wrong label has the larger score rejected), and the columns of the prompt. An answer that
    ``rollout.max_tokens`` cut has ``"finish_chosen": "length"`` or ``finish_rejected``, so that training does not
    take its last word for an end.

    Args:
        recipe: whose model, task, reward, sampling and seed to use.
        labels: how many, and how noisy.
        out: the JSON Lines file to write. Until it is complete its rows are in ``OUT.part``, from where an
            interrupted call goes on.
        progress: called with (pairs made, pairs wanted).

    Raises:
        ConfigError: the recipe has no reward, samples nothing, or plays episodes.
        RunError: the existing part was made by another recipe; or the answers hardly ever differ in reward.
    """
    if recipe.task.pays:
        raise ConfigError(
            "klent label compares two answers to a prompt, and task.env has several turns; use task.gym or task.data"
        )
    if recipe.reward is None or not recipe.rollout.sampled:
        raise ConfigError(
            "klent label needs a reward, which says which answer is better, and a rollout that samples; set "
            "`reward`, and no rollout.engine=dataset"
        )
    task = load_task(recipe.task, seed=recipe.seed, heldout=recipe.eval.problems if recipe.eval else 0)
    part = out.with_name(out.name + ".part")
    rows, position = _resumed(part, _header(recipe, labels))
    progress(len(rows), labels.pairs)
    engine = build_sampler(load_on_device(recipe.model, recipe), recipe.text_rollout)
    with Scorer(recipe.reward, task, judge=open_judges(recipe)) as scorer:
        scorer.check()
        while len(rows) < labels.pairs:
            if position >= max(AT_ONCE, TRIES * labels.pairs):
                raise RunError(
                    f"{len(rows)} of {plural(labels.pairs, 'pair')} after {plural(position, 'prompt')}: two answers "
                    "hardly ever have different rewards. Sample at a higher temperature, use a finer reward, or ask "
                    "for fewer pairs"
                )
            prompts = [task.train(position + index) for index in range(AT_ONCE)]
            seed = derive_seed(recipe.seed, "label", position)
            rollouts = engine.generate(prompts, group_size=2, seed=seed)
            made = _pairs(rollouts, scorer.score_episodes(rollouts).reward, labels, seed)
            position += AT_ONCE
            append_line(part, {"position": position, "rows": made})
            rows += made
            progress(min(len(rows), labels.pairs), labels.pairs)
    rows = rows[: labels.pairs]
    write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    part.unlink()
    return rows


def _pairs(rollouts: Sequence[Episode], rewards: Sequence[float], labels: Labels, seed: int) -> list[Row]:
    drawn = random.Random(seed)
    rows = []
    for index in range(0, len(rollouts), 2):
        one, other = rollouts[index], rollouts[index + 1]
        scores = rewards[index], rewards[index + 1]
        known = all(math.isfinite(value) for value in scores)
        texts = one.text.strip(), other.text.strip()
        if not known or scores[0] == scores[1] or texts[0] == texts[1] or not all(texts):
            continue
        better = labels.first_is_better(*scores, drawn)
        pair = ((one, scores[0]), (other, scores[1]))
        rows.append(_row(one.prompt, dict(zip(SIDES, pair if better else pair[::-1], strict=True))))
    return rows


def _row(prompt: Prompt, sides: dict[str, tuple[Episode, float]]) -> Row:
    """A pair as the field writes it: texts behind a text, messages behind messages."""

    def answer(text: str) -> object:
        return text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]

    own = {"prompt": prompt.prompt, **{side: answer(episode.text) for side, (episode, _) in sides.items()}}
    scores = {f"score_{side}": score for side, (_, score) in sides.items()}
    cut = {f"finish_{side}": "length" for side, (episode, _) in sides.items() if episode.finish == "length"}
    taken = {*own, *scores, *(f"finish_{side}" for side in SIDES), "completion", "messages"}
    return {**own, **scores, **cut, **{n: v for n, v in prompt.columns.items() if n not in taken}}


def _header(recipe: Recipe, labels: Labels) -> Row:
    """Everything that the pairs depend on."""
    values = recipe.model_dump(
        mode="json", include={"model", "precision", "task", "rollout", "seed", "reward"}
    )
    values["task"].pop("clock", None)
    return {**values, "noise": labels.noise, "flip": labels.flip}


def _resumed(part: Path, header: Row) -> tuple[list[Row], int]:
    """The rows that are there already, and how many prompts they took; starts the file where there is none."""
    lines = list(read_jsonl(part))
    if not lines:
        write_atomic(part, json.dumps(header) + "\n")
        return [], 0
    if lines[0] != json.loads(json.dumps(header)):
        differ = [key for key in header if lines[0].get(key) != header[key]]
        reason = f"holds pairs of another setting ({', '.join(differ)} differ)"
        raise RunError(f"{part} {reason}; remove it, or choose another --out")
    rows = [row for line in lines[1:] for row in line["rows"]]
    return rows, int(lines[-1].get("position", 0))
