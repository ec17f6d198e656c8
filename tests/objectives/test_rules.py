"""Rules of the package: what it imports and exports, what its docstrings say, how long its functions are."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from klent import objectives as O

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
            assert parameter.kind is parameter.KEYWORD_ONLY


def test_public_names() -> None:
    names = """
        cross_entropy weighted_cross_entropy uniform_cross_entropy reinforce ppo_clip cispo clip_cov kl_cov
        entropy_shaped entropy_ratio_clip kl_in_loss entropy_loss ddpo dpok dpo bradley_terry
        policy_labeled_preference cpl
        high_entropy_tokens low_entropy_tokens random_tokens clip_cov_tokens kl_cov_tokens
        group_advantage leave_one_out gae reward_to_go empo_reward importance_weight
        kl_in_reward kl_estimate token_covariance predicted_entropy_change semantic_entropy fit_reward_entropy
        qsft_target qsft_policy categorical_entropy categorical_cross_entropy categorical_kl
        gaussian_logp gaussian_kl sft_logit_gradient reinforce_logit_gradient
        reduce_tokens TokenLoss RewardEntropyFit
    """
    assert set(O.__all__) == set(names.split())
