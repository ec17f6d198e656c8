"""Rules of the package: what it imports and exports, what its docstrings say, how long its functions are."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from klent import objectives as O
from objectives.declared import functions

FILES = sorted(Path(O.__file__).parent.glob("*.py"))
FUNCTIONS = [name for name in O.__all__ if inspect.isfunction(getattr(O, name))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_imports_torch_and_nothing_else(file: Path) -> None:
    roots = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module or "")
    foreign = {
        r
        for r in roots
        if not r.startswith("klent.objectives") and r.split(".")[0] not in sys.stdlib_module_names
    }
    assert {root.split(".")[0] for root in foreign} <= {"torch"}


def test_import_is_light() -> None:
    heavy = "{'transformers', 'pydantic', 'matplotlib'}"
    code = f"import sys; from klent import objectives; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_functions_are_short(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            assert (node.end_lineno or 0) - (start or 0) <= 60, node.name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_are_whole(name: str) -> None:
    function = getattr(O, name)
    text = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:", "Raises:", "Example:", ">>> "):
        assert part in text, f"{name} has no {part}"
    for parameter in inspect.signature(function).parameters:
        assert f"\n    {parameter}: " in text, f"{name} does not explain {parameter}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_settings_are_keyword_only_and_typed(name: str) -> None:
    # data comes by position or by name, settings by name only: a recipe's keys are read from the signature
    for parameter in inspect.signature(getattr(O, name)).parameters.values():
        assert parameter.annotation is not parameter.empty
        is_tensor = "Tensor" in str(parameter.annotation)
        if not is_tensor:
            assert parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD)


PINNED = """
    cross_entropy weighted_cross_entropy reinforce ppo_clip cispo clip_cov kl_cov entropy_loss
    high_entropy_tokens clip_cov_tokens kl_cov_tokens group_advantage leave_one_out gae token_covariance
    kl_estimate kl_in_reward kl_in_loss categorical_kl gaussian_kl dpo bradley_terry policy_labeled_preference
    semantic_entropy empo_reward fit_reward_entropy reduce_tokens
    uniform_cross_entropy entropy_shaped entropy_ratio_clip ddpo dpok cpl low_entropy_tokens random_tokens
    entropy_effect reward_to_go importance_weight predicted_entropy_change qsft_target qsft_policy categorical_entropy
    categorical_cross_entropy gaussian_logp sft_logit_gradient reinforce_logit_gradient
    TokenLoss RewardEntropyFit
"""


def test_pinned_names_are_public() -> None:
    assert set(PINNED.split()) <= set(O.__all__)
    assert len(O.__all__) == len(set(O.__all__))


def test_every_public_function_declares_its_kind() -> None:
    assert set(functions()) == set(FUNCTIONS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_module_says_what_it_exports(file: Path) -> None:
    # so that a new function in a module is public without an edit of the package
    module = importlib.import_module(f"{O.__name__}.{file.stem}" if file.stem != "__init__" else O.__name__)
    if file.stem in PRIVATE:
        return
    public = {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public <= set(module.__all__) <= set(O.__all__)


PRIVATE = {"checks", "kinds", "masking", "returned"}  # what the functions share
EXPECTED_KINDS = {
    "selector": {
        "high_entropy_tokens",
        "low_entropy_tokens",
        "random_tokens",
        "clip_cov_tokens",
        "kl_cov_tokens",
    },
    "advantage": {"group_advantage", "leave_one_out", "gae"},
    "token_reward": {"kl_in_reward"},
    "pair_loss": {"dpo", "bradley_terry", "cpl", "policy_labeled_preference"},
    "reduction": {"reduce_tokens"},
}


@pytest.mark.parametrize("kind", EXPECTED_KINDS)
def test_kinds_are_those_expected(kind: Any) -> None:
    assert EXPECTED_KINDS[kind] <= set(functions(kind))


def test_losses_per_token_are_no_other_kind() -> None:
    returned = {
        name for name in FUNCTIONS if inspect.signature(getattr(O, name)).return_annotation is O.TokenLoss
    }
    assert returned == set(functions("token_loss"))
