"""What a model has become: rewards on named problems, exact KL both ways, prose, and how far its weights moved."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from klent.config import Recipe, TransformersRollout
from klent.config.rewards import short_names
from klent.config.study import Judge, Judged
from klent.io.files import write_atomic
from klent.kit.seeds import derive_seed
from klent.measure.best_of import best_of
from klent.measure.divergence import measure_divergence
from klent.measure.evaluate import by_problem, evaluate
from klent.measure.prose import paragraphs, text_nats, texts_of, weight_distance
from klent.models.load import LoadedModel
from klent.runs.code import model_folder
from klent.runs.engines import build_sampler
from klent.runs.evaluate import load_on_device
from klent.runs.judges import open_judges
from klent.streams.episode import Episode
from klent.studies.pipeline.plan import Block
from klent.tasks import Scorer, Task, load_task
from klent.tasks.judge import OpenJudge
from klent.tasks.returns import Returns
from klent.training.kept_reference import identity

FILE = "judge.json"
Row = dict[str, float]


@dataclass
class Judging:
    """Measures the models of one seed; the base and its answers are kept from one to the next.

    Args:
        block: the seed's runs and what judges them.
        recipe: of any of them: precision and attention of the models.
        say: told in a line what is being measured.
    """

    block: Block
    recipe: Recipe
    say: Callable[[str], None] = lambda line: None
    _base: LoadedModel | None = None
    _answers: dict[str, list[Episode]] = field(default_factory=dict)

    @property
    def judge(self) -> Judge:
        """The section of the study."""
        return self.block.judge

    def measure(self, model: str, folder: Path) -> Row:
        """The numbers of a model, from ``folder/judge.json`` where they are there already.

        Args:
            model: folder or name.
            folder: of the run that made it, or of the study for the base.
        """
        file, key = folder / FILE, self._key(model)
        if file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))
            if known.get("key") == key:
                return {name: math.nan if value is None else value for name, value in known["row"].items()}
        self.say(f"judging {model}")
        row = self._measured(model)
        kept = {name: value if math.isfinite(value) else None for name, value in row.items()}
        write_atomic(file, json.dumps({"key": key, "row": kept}, indent=2) + "\n")
        return row

    def _key(self, model: str) -> str:
        """Of all that the numbers depend on: a stage that is trained again is judged again."""
        judge = self.judge.model_dump(mode="json")
        weights = [identity(folder) for folder in _folders([model, self.block.base, judge])]
        texts = [texts_of(texts.data) for texts in self.judge.texts.values()]
        values = [judge, model, self.block.base, self.block.seed, weights, texts]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def base(self) -> LoadedModel:
        """What models are compared with."""
        if self._base is None:
            self._base = load_on_device(self.block.base, self.recipe)
        return self._base

    def _measured(self, model: str) -> Row:
        loaded = self.base if model == self.block.base else load_on_device(model, self.recipe)
        row: Row = {}
        for name, judged in self.judge.on.items():
            row |= {f"{name}/{key}": value for key, value in self._on(name, judged, loaded).items()}
        if self.judge.prose:
            row |= text_nats(loaded, "prose", paragraphs(self.judge.prose))
        for name, texts in self.judge.texts.items():
            row |= text_nats(loaded, name, texts_of(texts.data))
        if self.judge.distance:
            row["weights/distance"] = weight_distance(loaded, self.base)
        return row

    def _on(self, name: str, judged: Judged, loaded: LoadedModel) -> Row:
        with ExitStack() as stack:
            task = load_task(judged.task, seed=self.block.seed, heldout=judged.problems)
            if task.environments is not None:
                stack.callback(task.environments.close)
            return self._solved(name, judged, loaded, task)

    def _solved(self, name: str, judged: Judged, loaded: LoadedModel, task: Task) -> Row:
        engine = build_sampler(loaded, _rollout(judged), environments=task.environments)
        task.fit(None, engine.check)
        prompts = task.heldout(judged.problems)
        found: list[Episode] = []

        def keep(rollouts: Sequence[Episode], correct: object) -> dict[str, object]:
            found.extend(rollouts)
            return {}

        judges = open_judges(self.recipe, sampler=loaded.source)
        with ExitStack() as stack:
            scorer = stack.enter_context(Scorer(judged.reward, task, judge=judges)) if judged.reward else None
            row = evaluate(
                engine,
                scorer if scorer is not None and task.environments is None else Returns(scorer),
                prompts,
                samples=judged.samples,
                seed=derive_seed(self.block.seed, "judge", name),
                step=0,
                more=keep,
            )
        numbers = {key: float(str(row[key])) for key in ("reward", "entropy", "length", "unscorable")}
        if f"pass@{judged.samples}" in row:
            numbers |= {f"pass@{k}": float(str(row[f"pass@{k}"])) for k in _doubling(judged.samples)}
        if judged.kl:
            numbers |= self._kl(name, judged, loaded, found, task)
        others = _others(judged, task, found, judges)
        numbers |= {key: _mean(values) for key, values in others.items()}
        rewards = [[math.nan if v is None else float(v) for v in group] for group in row["rewards"]]  # type: ignore[attr-defined]
        for n in judged.best_of:
            numbers |= _best_of(n, rewards, next(iter(others.items())))
        return numbers

    def _kl(self, name: str, judged: Judged, loaded: LoadedModel, own: Sequence[Episode], task: Task) -> Row:
        """Exact KL per answer: of the model from the base along its own answers, and the other way round."""
        if loaded is self.base:
            self._answers[name] = list(own)
            return {"kl_reverse": 0.0, "kl_forward": 0.0}
        options = {"samples": judged.samples, "temperature": judged.temperature}
        if name not in self._answers:
            seed = derive_seed(self.block.seed, "judge", name)
            prompts = task.heldout(judged.problems)  # those that fit the model's context
            engine = build_sampler(self.base, _rollout(judged), environments=task.environments)
            self._answers[name] = engine.generate(prompts, group_size=judged.samples, seed=seed)
        reverse = measure_divergence(loaded, self.base, own, **options)  # type: ignore[arg-type]
        forward = measure_divergence(self.base, loaded, self._answers[name], **options)  # type: ignore[arg-type]
        return {"kl_reverse": reverse["kl/base_completion"], "kl_forward": forward["kl/base_completion"]}


def _folders(value: object) -> Iterator[Path]:
    """Every model's folder that is named in the values."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _folders(item)
    elif isinstance(value, str) and (folder := model_folder(value)) is not None:
        yield folder


def _rollout(judged: Judged) -> TransformersRollout:
    return TransformersRollout(max_tokens=judged.max_tokens, temperature=judged.temperature)


def _others(
    judged: Judged, task: Task, rollouts: Sequence[Episode], judges: OpenJudge
) -> dict[str, list[list[float]]]:
    """What each further reward says of the answers, problem by problem; NaN where it cannot score one."""
    found = {}
    names = short_names([*judged.reward, *judged.others])[len(judged.reward) :]
    for name, reward in zip(names, judged.others, strict=True):
        with Scorer((reward,), task, judge=judges) as scorer:
            found[name] = [
                list(group) for group in by_problem(scorer.score_episodes(rollouts).reward, judged.samples)
            ]
    return found


def _doubling(most: int) -> list[int]:
    """2, 4, 8, ... and the most itself."""
    return sorted({2**power for power in range(1, most.bit_length())} | {most})


def _mean(values: Sequence[Sequence[float]]) -> float:
    known = [value for group in values for value in group if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _best_of(n: int, rewards: Sequence[Sequence[float]], by: tuple[str, Sequence[Sequence[float]]]) -> Row:
    """The reward of the best of n answers by another reward, and what that one says of it.

    Only problems whose answers are all scored count.
    """
    name, scores = by
    whole = [
        pair
        for pair in zip(scores, rewards, strict=True)
        if not any(math.isnan(v) for side in pair for v in side)
    ]
    if not whole:
        return {}
    return {
        f"best_of_{n}": sum(best_of(score, reward, n) for score, reward in whole) / len(whole),
        f"best_of_{n}_{name}": sum(best_of(score, score, n) for score, _ in whole) / len(whole),
    }
