"""Adding a loss takes the function, its test and a recipe: nothing else has to know of it."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_folder

from klent import objectives
from klent.config import binding, make_recipe
from klent.config.checks import streams
from klent.errors import ConfigError
from klent.io.files import read_jsonl
from klent.objectives.kinds import declaration
from klent.runs.console import QuietConsole
from klent.runs.train import train
from objectives import test_idle as idle
from objectives import test_laws as laws
from objectives import test_refusals as refusals
from objectives.declared import cases, functions

SOURCE = '''
"""A loss that klent has not seen."""

from torch import Tensor

from klent.objectives.checks import check_number, check_tokens
from klent.objectives.kinds import token_loss
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["tempered"]


def _idle(advantage: Tensor, strength: float, **_: object) -> Tensor:
    return (advantage == 0) | (strength == 0)


@token_loss(idle=_idle)
def tempered(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, *, strength: float = 0.5
) -> TokenLoss:
    """Policy gradient, softened.

    Args:
        logp: of the policy being trained, nats, ``[B, T]``. Receives the gradient.
        logp_old: at the start of the update, nats, ``[B, T]``. Receives no gradient.
        advantage: ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        strength: exponent of the ratio, in [0, 1].

    Returns:
        ``TokenLoss``.
    """
    check_tokens(mask, logp=logp, logp_old=logp_old, advantage=advantage)
    check_number("strength", strength, 0, 1)
    logp, logp_old, advantage = on_mask(mask, logp, logp_old.detach(), advantage.detach())
    distance = logp.detach() - logp_old
    loss = -strength * (strength * distance).exp() * advantage * logp
    return TokenLoss(loss, {"tempered": metric(distance.abs(), mask)})
'''
REWARD = '''
def codes(prompts, completions, **columns):
    """The sum of a completion's characters: no two completions have the same."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(map(ord, t)) / 1000 for t in texts]
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, prompts, a reward, and the file of the new loss."""
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "added.py").write_text(SOURCE)
    rows = [{"prompt": f"say {i}"} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def values(loss: str) -> dict[str, object]:
    return {
        "name": "added",
        "model": "model",
        "task": {"data": "prompts.jsonl"},
        "reward": "reward.py:codes",
        "loss": {loss: {}},
        "advantage": {"leave_one_out": {}},
        "steps": 2,
        "prompts_per_step": 2,
        "group_size": 3,
        "rollout": {"max_tokens": 8},
        "optimizer": {"lr": 0.01},
        "eval": None,
    }


def register(monkeypatch: pytest.MonkeyPatch, source: str = SOURCE) -> None:
    """As if the loss stood in a module of klent.objectives, whose ``__all__`` names it."""
    module = ModuleType("klent.objectives.added")
    exec(compile(source, "added.py", "exec"), module.__dict__)
    for name in module.__all__:
        monkeypatch.setattr(objectives, name, getattr(module, name), raising=False)
    monkeypatch.setattr(objectives, "__all__", [*objectives.__all__, *module.__all__])


@pytest.mark.parametrize("name", ["added.py:tempered", "tempered"])
def test_a_new_loss_trains_from_a_recipe_alone(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "tempered":
        register(monkeypatch)
    recipe = make_recipe(values(name))
    assert recipe.loss == {name: {"strength": 0.5}}
    assert streams(recipe) == {"logp", "logp_old", "advantage", "mask"}
    run = train(recipe, folder / "run", command="klent train added", console=QuietConsole())
    rows = list(read_jsonl(run / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["objective/tempered"] >= 0 for row in rows)
    assert all(row["grad/norm"] > 0 for row in rows)
    before, after = (load_file(part / "model.safetensors") for part in (folder / "model", run / "final"))
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_new_loss_is_bound_by_what_it_declares(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tempered" not in binding.shipped("token_loss")
    register(monkeypatch)
    assert "tempered" in binding.shipped("token_loss")
    with pytest.raises(
        ConfigError, match=r"select.mask.tempered: tempered does not go under select but under"
    ):
        make_recipe({**values("reinforce"), "select": {"mask": {"tempered": {}}}})
    with pytest.raises(
        ConfigError, match=r"added.py:tempered declares itself @token_loss: it does not go under"
    ):
        make_recipe({**values("reinforce"), "select": {"mask": {"added.py:tempered": {}}}})
    declared = declaration(binding.resolve("tempered"))
    assert declared is not None
    assert declared.kind == "token_loss"


def test_the_laws_find_a_new_loss_by_its_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    assert "tempered" in functions("token_loss")
    (case,) = cases(["tempered"])
    for table in (laws.LOSSES, laws.EVERY, refusals.PER_TOKEN):
        monkeypatch.setitem(table, "tempered", case)
    size = (0, 4, 6)
    laws.test_losses_do_not_read_what_is_off_the_mask.hypothesis.inner_test("tempered", size)
    laws.test_parts_of_a_step_add_up_to_the_step.hypothesis.inner_test("tempered", "sequences", size, 1)
    laws.test_losses_train_the_policy_and_nothing_else("tempered")
    refusals.test_every_tensor_is_checked("tempered")
    refusals.test_every_setting_is_checked("tempered")
    for seed in range(10):
        idle.check_exact("tempered", idle.idle_of("tempered"), seed)
        idle.check_whole(case, idle.idle_of("tempered"), seed)


def test_a_loss_that_needs_a_setting_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, SOURCE.replace("strength: float = 0.5", "strength: float"))
    with pytest.raises(
        AssertionError, match=r'tempered needs strength: .* CASES = \{"tempered": \[\{"strength"'
    ):
        cases(["tempered"])
