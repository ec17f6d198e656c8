"""What learns values from logged play, as a recipe's ``bellman`` describes it."""

from collections.abc import Callable

import torch

from klent.config import Bellman
from klent.control.bellman import BellmanTargets, ConstantWeights, Scale
from klent.control.organ import Organ
from klent.errors import RunError
from klent.kit.seeds import derive_seed
from klent.models.load import LoadedModel
from klent.policies.causal_lm.beside import (
    HOLDS_VALUES,
    add_dummy_action,
    holds_values,
    start_logits_at_zero,
)
from klent.policies.causal_lm.best_next import BestNext
from klent.policies.causal_lm.critic import Critic
from klent.policies.causal_lm.expected_next import ExpectedNext
from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import head_options
from klent.runs.targets import refuse_values
from klent.tasks import Task
from klent.tasks.trajectories import TrajectoryTask
from klent.training.objective import Objective


def build_values(
    settings: Bellman, policy: CausalPolicy, behaviour: CausalPolicy | None, task: Task
) -> Organ:
    """The organ that fills ``weight``.

    Args:
        settings: the recipe's ``bellman``.
        policy: what is trained.
        behaviour: the model of the data; None where targets are not read from values.
        task: whose discount and returns are the scale.

    Raises:
        RunError: one of the two models has no fused head, whose logits could be compared in tiles.
    """
    if settings.target == "constant":
        assert settings.weight is not None  # the recipe was checked
        return ConstantWeights(settings.weight)
    assert isinstance(task, TrajectoryTask)  # likewise
    scale = Scale(*task.bounds, task.discount)
    best: BestNext | ExpectedNext | None = None
    if settings.target == "value":
        best = ExpectedNext(policy, KeptWeights(policy))
    if behaviour is not None:
        for who, model in (("policy", policy), ("reference", behaviour)):
            if not model.fused:
                raise RunError(
                    f"bellman.target: needs logits that are one matrix product, and the {who} has others; use "
                    "target: returns"
                )
        best = BestNext(policy, KeptWeights(policy), behaviour, min_behaviour=settings.min_behaviour)
    return BellmanTargets(scale, best, rate=settings.rate, names=policy.trainable())


def add_second_head(objective: Objective, critic: Critic, rows: int, seed: int) -> None:
    """Give the critic a value of each of so many actions, where a term reads a second opinion of them."""
    if objective.reads("logit_second"):
        critic.add_actions(rows, torch.Generator().manual_seed(derive_seed(seed, "second head")))


def prepare_head(objective: Objective, loaded: LoadedModel, note: Callable[[str], None]) -> None:
    """Give the head a dummy action where a term reads one; where one reads logits as values, start them at 0.

    Args:
        objective: whose terms learn values, or do not.
        loaded: the model, which is marked where they do.
        note: told where they do not, and the model holds some.

    Raises:
        ModelError: values are to be learnt, and the head holds some already.
        RunError: a loss spreads over another number of actions than the head has, or logits are no product.
    """
    if objective.reads("weight"):
        refuse_values(loaded, "model")
        setattr(loaded.model.config, HOLDS_VALUES, True)
    elif holds_values(loaded.model):
        note(
            f"{loaded.source} holds values (method qsft or ilql), and this method would train its logits as a "
            "policy's; the values would be lost. To imitate the log, or to train online, start from the model of the "
            "data (method sft)"
        )
    if objective.reads("logp_dummy"):
        add_dummy_action(loaded.model)
    if objective.reads("logit"):
        if head_options(loaded.model) is None:  # asked before the head is 0, where all is alike
            raise RunError(
                "this method uses logits as values, and the model's logits are not one matrix product; use another "
                "model"
            )
        start_logits_at_zero(loaded.model)
    rows = loaded.rows
    for term in objective.named("uniform_cross_entropy"):
        if term.settings["actions"] != rows:
            raise RunError(
                f"loss.{term.name}.actions is {term.settings['actions']}, and the model's head has {rows} rows. Set "
                f"it to {rows}."
            )
