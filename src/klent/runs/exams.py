"""What an evaluation of a recipe measures: answers to held-out problems, held-out pairs, the loss of completions."""

from collections.abc import Callable, Sequence

from klent.config import Recipe
from klent.kit.seeds import derive_seed
from klent.measure.evaluate import NO_PROBLEMS, evaluate
from klent.measure.preferences import evaluate_pairs
from klent.rollout.engine import Engine
from klent.runs.evaluate import evaluate_policy, pair_scores
from klent.runs.evaluation import EvalRow, Exam
from klent.runs.heldout_loss import heldout_completions, loss_row
from klent.runs.parts import Parts
from klent.streams.prompt import Prompt
from klent.tasks import Task
from klent.tasks.data import one_of_each
from klent.tasks.returns import Judge


def build_exams(
    recipe: Recipe,
    parts: Parts,
    *,
    task: Task,
    examined: Task,
    judge: Judge | None,
    note: Callable[[str], None],
) -> list[Exam]:
    """Each gives a part of a row of eval.jsonl; none where the recipe has no evaluation.

    Args:
        recipe: whose ``eval`` section says how much.
        parts: of the run; where the engine replays, held-out completions and pairs are replayed too.
        task: has the held-out problems, pairs and completions.
        examined: has those that are answered: the task, or the starts of the game that it is judged in.
        judge: tells right from wrong; None = no problem is answered.
        note: told what a user should know.
    """
    settings, paired, loaded = recipe.eval, recipe.task.paired, parts.loaded
    if settings is None or (judge is None and recipe.rollout.sampled):
        return []
    prompts = task.heldout(settings.problems)
    asked = examined.heldout(settings.problems)
    asked = one_of_each(asked) if paired else asked
    if not (prompts or asked):
        note(NO_PROBLEMS)
        return []

    if parts.compare is not None:
        measure = parts.compare
        return [lambda step, votes: measure(prompts, step)]
    if loaded is None:
        return [_vectors(recipe, parts.sampler, judge, asked)] if judge is not None else []

    def losses(step: int, votes: Sequence[str | None] | None) -> EvalRow:
        return loss_row(step, completions, parts.updater, loaded)

    def answers(step: int, votes: Sequence[str | None] | None) -> EvalRow:
        assert judge is not None
        return evaluate_policy(
            loaded,
            recipe.text_rollout,
            settings,
            scorer=judge,
            prompts=asked,
            seed=recipe.seed,
            step=step,
            start=votes,
            engine=parts.sampler,
            environments=examined.environments,
        )

    def pairs(step: int, votes: Sequence[str | None] | None) -> EvalRow:
        return evaluate_pairs(parts.engine, pair_scores(parts.updater, parts.compared), prompts, step=step)

    drop = recipe.task.too_long == "drop"
    completions = [] if paired else heldout_completions(parts.engine, prompts, drop=drop, note=note)
    wanted = ((losses, bool(completions)), (answers, judge is not None), (pairs, paired))
    return [exam for exam, is_wanted in wanted if is_wanted]


def _vectors(recipe: Recipe, sampler: Engine, judge: Judge, prompts: Sequence[Prompt]) -> Exam:
    """Held-out episodes of a policy whose actions are vectors, scored."""
    samples = recipe.eval.samples if recipe.eval else 1
    seed = derive_seed(recipe.seed, "eval")

    def exam(step: int, votes: Sequence[str | None] | None) -> EvalRow:
        return evaluate(sampler, judge, prompts, samples=samples, seed=seed, step=step)

    return exam
