"""The mixture inside ``generate``: what it samples and records is what a full forward pass of both gives."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from oracles import mixture as oracle
from tiny import tiny_model
from torch import Tensor

from klent import mixture as M
from klent.integrations import MixtureLogitsProcessor, MixtureTrace

PROMPTS = torch.tensor([[7, 11, 13, 40], [9, 8, 7, 60]])
NEW = 6
SETTINGS = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": NEW}
ALPHAS = [(0.5, None), (0.0, None), (1.0, None), ("chernoff", None), ("kl_budget", 0.2), ("ess", 0.6)]


def generate(mixing: MixtureLogitsProcessor, model: torch.nn.Module, **settings: object) -> Tensor:
    torch.manual_seed(0)
    return model.generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        logits_processor=[mixing],
        eos_token_id=None,
        **(SETTINGS | settings),
    )


@torch.no_grad()
def logits_of(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> np.ndarray:
    """Of every token of a completion, from one forward pass over the whole row."""
    ids = torch.tensor([prompt + completion])
    return model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().numpy()


def check(trace: MixtureTrace, row: int, completion: list[int], policy: np.ndarray, target: np.ndarray):
    for t, token in enumerate(completion):
        alpha = trace.alpha[row, t].item()
        q = oracle.mixture(policy[t], target[t], alpha)
        assert trace.logp[row, t].item() == pytest.approx(np.log(q[token]), abs=5e-5)
        policy_logp = oracle.normalise(policy[t])
        assert trace.logp_policy[row, t].item() == pytest.approx(policy_logp[token], abs=5e-5)
        assert trace.kl_policy[row, t].item() == pytest.approx(oracle.kl(q, np.exp(policy_logp)), abs=5e-5)
        teacher = np.exp(oracle.normalise(target[t]))
        assert trace.kl_target[row, t].item() == pytest.approx(oracle.kl(q, teacher), abs=5e-5)


@pytest.mark.parametrize(("alpha", "value"), ALPHAS)
def test_records_are_those_of_full_passes_over_both_models(alpha: object, value: float | None) -> None:
    student, teacher = tiny_model(0), tiny_model(1)
    mixing = MixtureLogitsProcessor(
        teacher, alpha=alpha, value=value, temperature=0.8, target_temperature=1.3
    )
    ids = generate(mixing, student, num_return_sequences=3)
    trace = mixing.trace(ids)
    assert trace.alpha.shape == (6, NEW)
    for row in range(6):
        prompt, completion = ids[row, :4].tolist(), ids[row, 4:].tolist()
        policy = logits_of(student, prompt, completion) / 0.8
        target = logits_of(teacher, prompt, completion) / 1.3
        check(trace, row, completion, policy, target)
        if alpha == "chernoff":
            expected = [oracle.chernoff(p, t) for p, t in zip(policy, target, strict=True)]
            np.testing.assert_allclose(trace.alpha[row].numpy(), expected, atol=1e-4)
        elif isinstance(alpha, float):
            assert (trace.alpha == alpha).all()
    if alpha == "kl_budget":
        reached = trace.alpha > 0
        torch.testing.assert_close(trace.kl_policy[reached], torch.full((int(reached.sum()),), 0.2))


def test_the_same_model_behind_a_longer_padded_prompt() -> None:
    model = tiny_model()
    hints = [[50, 51, 52, 53, 7, 11, 13, 40], [60, 9, 8, 7, 60]]
    padded = torch.tensor([hints[0], [0, 0, 0, *hints[1]]])
    inputs = {"input_ids": padded, "attention_mask": (padded != 0).long()}
    mixing = MixtureLogitsProcessor(model, inputs=inputs)
    ids = generate(mixing, model)
    trace = mixing.trace(ids)
    for row in range(2):
        completion = ids[row, 4:].tolist()
        policy = logits_of(model, PROMPTS[row].tolist(), completion)
        check(trace, row, completion, policy, logits_of(model, hints[row], completion))


def test_alpha_one_generates_what_the_policy_does_and_alpha_zero_what_the_target_does() -> None:
    student, teacher = tiny_model(0), tiny_model(1)
    plain = {"attention_mask": torch.ones_like(PROMPTS), "eos_token_id": None, **SETTINGS}
    for alpha, model in ((1.0, student), (0.0, teacher)):
        torch.manual_seed(0)
        expected = model.generate(PROMPTS, **plain)
        ids = generate(MixtureLogitsProcessor(teacher, alpha=alpha), student)
        assert torch.equal(ids, expected)


def test_what_cannot_be_followed_is_refused() -> None:
    student, teacher = tiny_model(0), tiny_model(1)
    mixing = MixtureLogitsProcessor(teacher)
    with pytest.raises(ValueError, match="nothing has been generated"):
        mixing.trace(PROMPTS)
    ids = generate(mixing, student)
    with pytest.raises(ValueError, match="prompts included"):
        mixing.trace(ids[:, 4:])
    with pytest.raises(ValueError, match="a new MixtureLogitsProcessor for each generate"):
        generate(mixing, student)
    with pytest.raises(ValueError, match="not beams"):
        generate(MixtureLogitsProcessor(teacher), student, num_beams=3, do_sample=False)
    three = {"input_ids": PROMPTS[[0, 0, 1]]}
    with pytest.raises(ValueError, match="3 prompts, the policy generates 2 rows"):
        generate(MixtureLogitsProcessor(teacher, inputs=three), student)
    small = tiny_model(1)
    small.resize_token_embeddings(100)
    with pytest.raises(ValueError, match="the target has 100 logits per token"):
        generate(MixtureLogitsProcessor(small, inputs={"input_ids": PROMPTS}), student)
    with pytest.raises(ValueError, match="needs a value"):
        MixtureLogitsProcessor(teacher, alpha="ess")
    with pytest.raises(ValueError, match="above 0"):
        MixtureLogitsProcessor(teacher, temperature=0.0)


def test_the_mathematics_is_imported_without_transformers() -> None:
    code = "import sys; import klent.integrations, klent.mixture; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_old_name_says_where_it_has_moved() -> None:
    with pytest.raises(AttributeError, match=r"Use klent\.integrations\.MixtureLogitsProcessor"):
        M.MixtureLogitsProcessor  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Mixtures'"):
        M.Mixtures  # noqa: B018


def test_a_fixed_mixture_of_rows_that_share_some_tokens() -> None:
    policy = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, 0.0, 0.0]])
    target = torch.tensor([[-torch.inf, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mixed = M.mix(policy, target, alpha=0.5)
    assert mixed.log_q[0].exp().tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(mixed.kl_policy.numpy(), [np.log(1 + np.exp(-1)), 0.0], atol=1e-6)
    np.testing.assert_allclose(mixed.kl_target.numpy(), [np.log(2), 0.0], atol=1e-6)
    alone = M.mix(policy, target, alpha=1.0)
    assert alone.kl_target[0] == torch.inf
    assert alone.kl_policy.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="a value belongs to a criterion"):
        M.mix(policy, target, alpha=0.5, value=0.1)
