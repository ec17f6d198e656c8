"""Two-model decoding: what it reports is what independent passes of both models say of what it sampled."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from oracles import mixture as oracle
from tiny import TURN_END, tiny_model, tiny_tokenizer

from klent.errors import ConfigError, DataError, ModelError
from klent.models.chat import render_prompt
from klent.models.load import LoadedModel
from klent.rollout.decoding import GroupDecoder, PlainDecoder
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.target import Target
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.prompt import Prompt

STOPS = (TURN_END, 20, 21, 22, 23, 24, 25, 26)


def loaded(seed: int = 0, tokenizer: object = None) -> LoadedModel:
    return LoadedModel(tiny_model(seed), tokenizer or tiny_tokenizer(), "tiny", STOPS)


def chat(*texts: str) -> list[Prompt]:
    return [
        Prompt(f"p/{i}", [{"role": "user", "content": text}], {"answer": f"<{i}>"})
        for i, text in enumerate(texts)
    ]


PROMPTS = chat("1+1", "a much longer question than the others?", "2+3=")
OPTIONS = SamplingOptions(max_tokens=12, temperature=0.7)
SEEDED = {"group_size": 4, "seed": 3}


def forward(model: torch.nn.Module, prompt: list[int], tokens: list[int]) -> np.ndarray:
    """Float64 logits of every sampled token: one unpadded pass, no cache, no batch."""
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor([prompt + tokens])).logits
    return logits[0, len(prompt) - 1 : -1].numpy()


def check(rollout, ours: torch.nn.Module, theirs: torch.nn.Module, target: Target, expected) -> None:
    """Every number of a rollout against full passes of both models; ``expected`` gives alpha of a token."""
    question = render_prompt(tiny_tokenizer(), target.question(rollout.prompt))
    tokens, mixture = rollout.tokens.tolist(), rollout.mixture
    policy = forward(ours, rollout.prompt_ids, tokens) / 0.7
    teacher = forward(theirs, question, tokens) / target.temperature
    for t, token in enumerate(tokens):
        alpha = expected(policy[t], teacher[t])
        q = oracle.mixture(policy[t], teacher[t], alpha)
        own, other = (np.exp(oracle.normalise(x[t])) for x in (policy, teacher))
        found = (
            mixture.alpha[t],
            rollout.logp[t],
            rollout.entropy[t],
            rollout.renyi[t],
            mixture.kl_policy[t],
            mixture.kl_target[t],
            mixture.logp_policy[t],
            mixture.entropy_policy[t],
            mixture.logp_target[t],
            mixture.reverse_kl[t],
        )
        wanted = (
            alpha,
            np.log(q[token]),
            -(q * np.log(q)).sum(),
            -np.log((q * q).sum()),
            oracle.kl(q, own),
            oracle.kl(q, other),
            np.log(own[token]),
            -(own * np.log(own)).sum(),
            np.log(other[token]),
            oracle.kl(own, other),
        )
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.3, "chernoff"])
@pytest.mark.parametrize("groups", [True, False])
def test_numbers_are_those_of_independent_passes(alpha, groups):
    target = Target(loaded(1), temperature=1.2)
    engine = MixtureEngine(loaded(), target, OPTIONS, alpha=alpha)
    engine.kind = engine.target_kind = GroupDecoder if groups else PlainDecoder
    rollouts = engine.generate(PROMPTS, **SEEDED)
    assert len({len(r.tokens) for r in rollouts}) > 2  # rows have left, and others have moved
    solve = oracle.chernoff if alpha == "chernoff" else lambda p, t: alpha
    for rollout in rollouts:
        check(rollout, tiny_model(0), tiny_model(1), target, solve)


def test_the_same_model_that_is_told_the_answer():
    model = loaded()
    target = Target(model, prompt="{prompt} (it is {answer})", system="help")
    told = target.question(PROMPTS[1])
    assert [m["role"] for m in told] == ["system", "user"]
    assert told[1]["content"] == "a much longer question than the others? (it is <1>)"
    assert target.question(Prompt("t", [{"role": "user", "content": "{x}"}], {"answer": "{prompt}"})) == [
        {"role": "system", "content": "help"},
        {"role": "user", "content": "{x} (it is {prompt})"},
    ]
    for rollout in MixtureEngine(model, target, OPTIONS).generate(PROMPTS, **SEEDED):
        check(rollout, tiny_model(), tiny_model(), target, oracle.chernoff)


@pytest.mark.parametrize("alpha", [0.4, 0.0, "chernoff"])
def test_a_target_that_is_the_policy_changes_nothing(alpha):
    options = SamplingOptions(max_tokens=12, top_k=20, top_p=0.9)
    plain = TransformersEngine(loaded(), options).generate(PROMPTS, **SEEDED)
    mixed = MixtureEngine(loaded(), Target(loaded()), options, alpha=alpha).generate(PROMPTS, **SEEDED)
    for left, right in zip(plain, mixed, strict=True):
        assert (left.text, left.finish, left.prompt_ids) == (right.text, right.finish, right.prompt_ids)
        assert left.tokens.tolist() == right.tokens.tolist()
        torch.testing.assert_close(left.logp, right.logp, atol=1e-5, rtol=0)
        torch.testing.assert_close(left.entropy, right.entropy, atol=1e-5, rtol=0)
        assert right.mixture.kl_policy.max() < 1e-5
        assert right.mixture.kl_target.max() < 1e-5


def test_the_ends_are_the_policy_and_the_target():
    options = SamplingOptions(max_tokens=12)
    for alpha, seed in ((1.0, 0), (0.0, 1)):
        engine = MixtureEngine(loaded(0), Target(loaded(1)), options, alpha=alpha)
        mixed = engine.generate(PROMPTS, **SEEDED)
        plain = TransformersEngine(loaded(seed), options).generate(PROMPTS, **SEEDED)
        assert [r.tokens.tolist() for r in mixed] == [r.tokens.tolist() for r in plain]


def test_the_batch_size_does_not_change_what_is_said():
    target = Target(loaded(1), prompt="{prompt}, {answer}")
    several = [
        MixtureEngine(loaded(), target, OPTIONS, rows=rows).generate(PROMPTS, **SEEDED) for rows in (4, 64)
    ]
    for left, right in zip(*several, strict=True):
        assert left.tokens.tolist() == right.tokens.tolist()
        torch.testing.assert_close(left.logp, right.logp, atol=1e-5, rtol=0)


def test_samples_have_the_frequencies_of_the_mixture():
    """One token, many rows: what is drawn follows the distribution that is claimed."""
    count = 4000
    engine = MixtureEngine(loaded(), Target(loaded(1)), SamplingOptions(max_tokens=1), rows=count)
    rollouts = engine.generate(PROMPTS[:1], group_size=count, seed=1)
    ids = rollouts[0].prompt_ids
    policy, teacher = (forward(tiny_model(seed), ids, [0])[0] for seed in (0, 1))
    q = oracle.mixture(policy, teacher, oracle.chernoff(policy, teacher))
    found = np.bincount([int(r.tokens[0]) for r in rollouts], minlength=len(q)) / count
    assert np.abs(found - q).max() < 5 * np.sqrt(q.max() / count)
    weight = np.array([float((r.mixture.logp_policy - r.logp).exp()) for r in rollouts])
    assert weight.mean() == pytest.approx(1.0, abs=5 * weight.std() / np.sqrt(count))


def test_an_adapter_that_is_switched_off():
    peft = pytest.importorskip("peft")
    base = tiny_model()
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.add_(0.2)
    own = LoadedModel(adapted.eval(), tiny_tokenizer(), "tiny", STOPS)
    target = Target(own, active=adapted.disable_adapter)
    rollouts = MixtureEngine(own, target, OPTIONS).generate(PROMPTS, **SEEDED)
    assert max(float(r.mixture.kl_policy.max()) for r in rollouts) > 0.01
    for rollout in rollouts[::3]:
        ids, tokens = rollout.prompt_ids, rollout.tokens.tolist()
        teacher = forward(tiny_model(), ids, tokens)
        with torch.no_grad():
            logits = adapted(input_ids=torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
        for t, (p, q) in enumerate(zip(logits.double().numpy() / 0.7, teacher, strict=True)):
            assert float(rollout.mixture.alpha[t]) == pytest.approx(oracle.chernoff(p, q), abs=1e-3)


def test_other_tokens_are_refused_with_the_first_that_differs():
    other = tiny_tokenizer()
    other.add_tokens(["<more>"])
    with pytest.raises(ModelError, match=r"first to differ is 198; the policy has no token '<more>'"):
        MixtureEngine(loaded(), Target(loaded(1, other)), OPTIONS)


def test_what_a_prompt_lacks_is_named():
    plain = [Prompt("p/0", "text", {})]
    for target, message in (
        (
            Target(loaded(1), prompt="{prompt} {solution}"),
            r"uses \{solution\}, a column that prompt p/0 lacks",
        ),
        (Target(loaded(1), system="help"), "plain text and has no system message"),
        (Target(loaded(1), prompt="{prompt}" + "x" * 600), r"sees prompt p/0 as \d+ tokens.*leaves 500"),
    ):
        with pytest.raises(DataError, match=message):
            MixtureEngine(loaded(), target, OPTIONS).generate(plain, **SEEDED)
    with pytest.raises(ConfigError, match="needs a temperature above 0"):
        MixtureEngine(loaded(), Target(loaded(1), temperature=0.0), OPTIONS)
    with pytest.raises(ValueError, match="needs a value"):
        MixtureEngine(loaded(), Target(loaded(1)), OPTIONS, alpha="ess")


#: share of the policy and what it aims at, top-p, the target's prompt and temperature
RECORDED = {
    "a number": (0.3, None, 1.0, None, 1.0),
    "by prompt": (lambda prompt: 0.1 + 0.2 * int(prompt.id[-1]), None, 1.0, None, 1.0),
    "chernoff": ("chernoff", None, 1.0, "Say of {prompt} what you think of it", 1.0),
    "a budget, cut": ("kl_budget", 0.1, 0.9, None, 1.3),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_step_mixes_as_step_by_step(name):
    alpha, value, top_p, prompt, temperature = RECORDED[name]
    options = SamplingOptions(max_tokens=20, temperature=0.7, top_p=top_p)
    ours = loaded()
    target = Target(loaded(1) if prompt is None else ours, prompt=prompt, temperature=temperature)

    def engine(decoding: str) -> MixtureEngine:
        return MixtureEngine(
            ours, target, options, alpha=alpha, value=value, decoding=decoding, note=pytest.fail
        )

    recorded, eager = engine("graph"), engine("eager")
    for seed in (3, 4):  # memory and recordings of the first call serve the second
        pairs = zip(
            *(one.generate(PROMPTS, group_size=4, seed=seed) for one in (recorded, eager)), strict=True
        )
        lengths = set()
        for one, other in pairs:
            assert one.tokens.tolist() == other.tokens.tolist()
            assert (one.finish, one.text) == (other.finish, other.text)
            lengths.add(len(one.tokens))
            for field in (own.name for own in fields(one.mixture)):
                mine, theirs = (getattr(x.mixture, field) for x in (one, other))
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(one.logp, other.logp, rtol=1e-4, atol=2e-5)
        assert len(lengths) > 1
    assert len({rows for rows, *_ in recorded.sampler.steps}) > 1  # rows have ended, and others moved


def test_a_share_that_is_set_anew_is_heeded_by_the_recording():
    ours, target = loaded(), Target(loaded(1))
    recorded = MixtureEngine(ours, target, OPTIONS, alpha=0.2, decoding="graph", note=pytest.fail)
    recorded.generate(PROMPTS, **SEEDED)
    steps = dict(recorded.sampler.steps)
    recorded.alpha = 0.9
    said = recorded.generate(PROMPTS, **SEEDED)
    assert all(recorded.sampler.steps[key] is step for key, step in steps.items())
    expected = MixtureEngine(ours, target, OPTIONS, alpha=0.9).generate(PROMPTS, **SEEDED)
    assert [one.tokens.tolist() for one in said] == [one.tokens.tolist() for one in expected]
    assert {round(float(a), 6) for one in said for a in one.mixture.alpha} == {0.9}
    recorded.alpha, recorded.value = "kl_budget", 0.05
    recorded.generate(PROMPTS, **SEEDED)
    assert not any(step in steps.values() for step in recorded.sampler.steps.values())
