"""What an evaluation of a recipe measures: answers to held-out problems, held-out pairs, the loss of completions."""

from collections.abc import Callable, Sequence

from klent.config import Recipe
from klent.measure.evaluate import NO_PROBLEMS
from klent.measure.preferences import evaluate_pairs
from klent.models.load import LoadedModel
from klent.rollout.engine import Engine
from klent.runs.evaluate import evaluate_policy, pair_scores
from klent.runs.evaluation import EvalRow, Exam
from klent.runs.heldout_loss import heldout_completions, loss_row
from klent.streams.prompt import Prompt
from klent.tasks import Task
from klent.tasks.returns import Judge
from klent.training.reference import Reference
from klent.training.update import Updater


def build_exams(
    recipe: Recipe,
    loaded: LoadedModel,
    engine: Engine,
    sampler: Engine,
    updater: Updater,
    compared: Reference | None,
    *,
    task: Task,
    examined: Task,
    judge: Judge | None,
    note: Callable[[str], None],
    compare: Callable[[Sequence[Prompt], int], EvalRow] | None = None,
) -> list[Exam]:
    """Each gives a part of a row of eval.jsonl; none where the recipe has no evaluation.

    Args:
        recipe: whose ``eval`` section says how much.
        loaded: the policy's model.
        engine: of training; where it replays, held-out completions and pairs are replayed too.
        sampler: answers held-out problems.
        updater: measures the policy.
        compared: gives ``logp_ref`` of pairs.
        task: has the held-out problems, pairs and completions.
        examined: has those that are answered: the task, or the starts of the game that it is judged in.
        judge: tells right from wrong; None = no problem is answered.
        note: told what a user should know.
        compare: measures held-out pairs after so many steps, where the policy scores texts and writes none.
    """
    settings, paired = recipe.eval, recipe.task.paired
    if settings is None or (judge is None and recipe.rollout.sampled):
        return []
    prompts = task.heldout(settings.problems)
    asked = examined.heldout(settings.problems)
    if not (prompts or asked):
        note(NO_PROBLEMS)
        return []

    if compare is not None:
        measure = compare
        return [lambda step, votes: measure(prompts, step)]

    def losses(step: int, votes: Sequence[str | None] | None) -> EvalRow:
        return loss_row(step, completions, updater, loaded)

    def answers(step: int, votes: Sequence[str | None] | None) -> EvalRow:
        assert judge is not None
        return evaluate_policy(
            loaded,
            recipe.rollout,
            settings,
            scorer=judge,
            prompts=asked,
            seed=recipe.seed,
            step=step,
            start=votes,
            engine=sampler,
            environments=examined.environments,
        )

    def pairs(step: int, votes: Sequence[str | None] | None) -> EvalRow:
        return evaluate_pairs(engine, pair_scores(updater, compared), prompts, step=step)

    drop = recipe.task.too_long == "drop"
    completions = [] if paired else heldout_completions(engine, prompts, drop=drop, note=note)
    wanted = ((losses, bool(completions)), (answers, judge is not None), (pairs, paired))
    return [exam for exam, is_wanted in wanted if is_wanted]
