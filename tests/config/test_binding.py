"""Functions of a recipe: shipped ones, and the user's own."""

import inspect

import pytest
import torch
from torch import Tensor

from klent import objectives
from klent.config import make_recipe, streams
from klent.config.binding import (
    TRAINED,
    choices_of,
    hyperparameters_of,
    resolve,
    shipped,
    sides_of,
    streams_of,
)
from klent.config.mixture_checks import imitations
from klent.config.places import wrong_function
from klent.config.trial import _example, try_out
from klent.errors import ConfigError
from klent.objectives.kinds import declaration
from klent.streams.registry import REGISTRY

VALUES = {"model": "m", "task": {"gym": "chain_sum"}, "reward": "gym", "steps": 2}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write ``own.py`` with a function ``f`` and make a recipe that uses it."""
    monkeypatch.chdir(tmp_path)

    def own(source: str, kind: str = "loss", settings: dict | None = None, method: str = "rloo"):
        (tmp_path / "own.py").write_text("import torch\nfrom torch import Tensor\n" + source)
        from klent.config import binding

        binding._load.cache_clear()
        values = {**VALUES, "method": method, kind: {"own.py:f": settings or {}}}
        return make_recipe(values)

    return own


@pytest.fixture
def refusal(own):
    def refusal(*args, **kwargs) -> str:
        with pytest.raises(ConfigError) as caught:
            own(*args, **kwargs)
        return str(caught.value)

    return refusal


def test_every_shipped_function_has_its_place():
    assert {"cross_entropy", "reinforce", "ppo_clip", "cispo", "kl_in_loss", "entropy_loss"} <= set(
        shipped("token_loss")
    )
    assert {"group_advantage", "leave_one_out", "gae", "whiten"} <= set(shipped("advantage"))
    assert {"dpo", "bradley_terry", "policy_labeled_preference"} <= set(shipped("pair_loss"))
    assert "kl_in_reward" in shipped("token_reward")
    placed = [name for kind in ("token_loss", "advantage", "token_reward") for name in shipped(kind)]
    assert len(placed) == len(set(placed))
    unplaced = {"kl_estimate", "token_covariance", "reduce_tokens", "high_entropy_tokens"}
    assert not unplaced & set(placed)


def test_selectors_have_their_place():
    chosen = {
        "high_entropy_tokens",
        "low_entropy_tokens",
        "random_tokens",
        "clip_cov_tokens",
        "kl_cov_tokens",
        "clip_cov_exact_tokens",
        "kl_cov_exact_tokens",
    }
    assert set(shipped("selector")) == chosen
    assert set(shipped("token_weight")) == {"steer_weight"}
    assert {"clip_cov", "kl_cov", "entropy_shaped", "entropy_ratio_clip"} <= set(shipped("token_loss"))


WHY_NOT = {
    "a loss per pair": (
        "loss",
        "dpo",
        "has no pairs, and the loss (dpo) compares two answers to a prompt; set task: {pairs: FILE}",
    ),
    "a value model": (
        "loss",
        "weighted_cross_entropy",
        "is missing: the loss reads weight, which it gives; set bellman: {}, and task: {trajectories: FILE}",
    ),
    "a critic": ("advantage", "gae", "is missing: value_old is read; set critic: {}"),
    "a denoiser": ("loss", "ddpo", "ddpo needs `sample`, `mean`, `std`, which no part of a run provides"),
    "an estimator": ("loss", "token_covariance", "token_covariance is an estimator: it makes numbers for"),
    "a measure": ("loss", "categorical_kl", "categorical_kl measures full distributions"),
    "the reduction": (
        "loss",
        "reduce_tokens",
        "averages the loss, which every recipe does: set it under `reduce`",
    ),
    "another section": (
        "loss",
        "kl_in_reward",
        "does not go under loss but under `token_reward`; valid here: ",
    ),
    "a misspelt name": (
        "loss",
        "ppo_cilp",
        "klent.objectives has no such function; did you mean `ppo_clip`?",
    ),
}


@pytest.mark.parametrize(("section", "name", "message"), WHY_NOT.values(), ids=WHY_NOT.keys())
def test_a_function_that_cannot_stand_there_says_why(section, name, message):
    with pytest.raises(ConfigError) as caught:
        make_recipe({**VALUES, "method": "rloo", section: {name: {}}})
    assert message in str(caught.value)


def test_no_loss_is_called_an_estimator_and_every_one_left_out_says_what_is_missing():
    for name in objectives.__all__:
        declared = declaration(getattr(objectives, name))
        if declared is None or declared.kind not in ("token_loss", "pair_loss"):
            continue
        reason = wrong_function("loss", name)
        if name in shipped("token_loss", "pair_loss"):
            assert reason is None
        else:
            assert "which no part of a run provides (" in reason, name


def test_imitations_are_losses_that_a_recipe_can_name_and_average_to_no_gradient():
    """Weights policy/q turn samples of q into the policy's own: the gradient is a sum over all tokens."""
    logits = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert imitations() == {"cross_entropy"}
    for name in imitations():
        logp = logits.log_softmax(-1)[:, None]  # one completion of one token for each of seven
        loss = shipped("token_loss")[name](logp=logp, mask=torch.ones_like(logp, dtype=torch.bool)).loss
        (gradient,) = torch.autograd.grad((logp.exp().detach() * loss).sum(), logits)
        assert gradient.abs().max() < 1e-15
        mixture = {"target": "teacher", "alpha": 0.5}
        values = {**VALUES, "advantage": None, "reduce": {"over": "tokens"}, "eval": {"problems": 4}}
        with pytest.raises(ConfigError, match=f"would reweight {name} to the policy's own samples"):
            make_recipe({**values, "loss": {name: {}}, "rollout": {"mixture": mixture}})


def test_streams_that_share_a_name_with_a_setting():
    def f(logp, mask, *, divergence: Tensor, importance_weight: Tensor | None = None, spared: Tensor): ...

    assert streams_of(f) == {"logp", "mask", "divergence", "importance_weight", "spared"}
    assert choices_of(f) == {"spared"}
    assert "divergence" not in streams_of(objectives.kl_in_loss)
    assert list(hyperparameters_of(objectives.kl_in_loss)) == ["coef", "divergence"]
    assert list(hyperparameters_of(objectives.kl_in_reward)) == ["coef"]


def test_the_streams_that_carry_a_gradient():
    named = {
        "logp",
        "entropy",
        "divergence",
        "kl",
        "value",
        "score",
        "logp_dummy",
        "logp_mean",
        "logp_observed",
        "logit",
        "logit_second",
        "denoising",
        "denoising_data",
        "denoising_kl",
    }
    assert named == TRAINED


def test_every_stream_has_an_example_of_its_shape():
    for name, stream in REGISTRY.items():
        example = _example(name)
        assert example.ndim == (2 if stream.shape == "[B, T]" else 1)
        assert example.requires_grad == (name in TRAINED)


@pytest.mark.parametrize("kind", ["token_loss", "pair_loss", "token_reward", "advantage", "selector"])
def test_every_shipped_function_passes_its_trial(kind):
    unlabelled = {
        "policy_labeled_preference": {"label": "pseudo"}
    }  # its default wants the behaviour policy's KL
    for name, function in shipped(kind).items():
        settings = hyperparameters_of(function).items()
        required = {key: 2 if key == "actions" else 1.0 for key, p in settings if p.default is p.empty}
        assert try_out(kind, function, required | unlabelled.get(name, {})) is None


OWN_IDLE = {
    "too much": (
        "lambda advantage, **_: advantage <= 0",
        "its `idle` is True at a token where it has a gradient",
    ),
    "no tokens": (
        "lambda **_: torch.tensor(True)",
        "its `idle` returned torch.bool [], expected True or False",
    ),
    "raises": ("lambda missing, **_: missing", "its `idle` raised TypeError"),
}


@pytest.mark.parametrize(("idle", "message"), OWN_IDLE.values(), ids=OWN_IDLE.keys())
def test_an_own_loss_with_a_wrong_idle_is_refused(refusal, idle, message):
    source = "from klent.objectives.kinds import token_loss\n"
    source += f"@token_loss(idle={idle})\ndef f(logp, advantage, mask): return -logp * advantage * mask\n"
    assert message in refusal(source)


def test_an_own_function_may_declare_its_kind_and_not_another(own, refusal):
    imports = "from klent.objectives.kinds import selector, token_loss\n"
    declared = imports + "@{}\ndef f(logp, mask): return -logp * mask\n"
    assert "own.py:f" in own(declared.format("token_loss()")).loss
    assert "own.py:f declares itself @selector: it does not go under loss but under `select.NAME`" in refusal(
        declared.format("selector")
    )


def test_an_own_loss_with_settings_of_any_name_has_none(refusal):
    source = "def f(logp, mask, **others): return -logp * mask\n"
    assert "f has no such setting; it has none" in refusal(source, settings={"power": 2})


def test_an_own_selector_and_the_loss_that_reads_it(own, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import Tensor\n"
        "def unlikely(logp, mask, *, below: float = -2.0): return mask & (logp < below)\n"
        "def f(logp, advantage, mask, *, spared: Tensor): return -logp * advantage * (mask & ~spared)\n"
    )
    from klent.config import binding

    binding._load.cache_clear()
    values = {**VALUES, "method": "rloo", "loss": {"reinforce": None, "own.py:f": {}}}
    recipe = make_recipe(
        {**values, "select": {"spared": "own.py:unlikely"}}, ["select.spared.own.py:unlikely.below=-3"]
    )
    assert recipe.select == {"spared": {"own.py:unlikely": {"below": -3}}}
    assert recipe.loss == {"own.py:f": {}}
    with pytest.raises(
        ConfigError, match=r"own.py:f: reads `spared`.*add  select: \{spared: \{random_tokens: "
    ):
        make_recipe(values)


def test_an_own_selector_that_chooses_nothing_is_refused(own, tmp_path):
    (tmp_path / "choice.py").write_text(
        "def f(entropy, mask, *, least: float = 1.0): return entropy - least\n"
    )
    values = {**VALUES, "method": "rloo", "select": {"mask": {"choice.py:f": {}}}}
    own("def f(logp, mask): return -logp * mask\n")
    with pytest.raises(ConfigError, match=r"select.mask.choice.py:f: returned torch.float32, not a choice"):
        make_recipe(values)


def test_streams_and_settings_come_from_the_signature():
    assert streams_of(objectives.kl_in_loss) == {"logp", "logp_ref", "logp_old", "mask"}
    assert {"coef", "divergence"} <= set(hyperparameters_of(objectives.kl_in_loss))
    assert "logp_old" not in hyperparameters_of(objectives.kl_in_loss)
    assert streams_of(objectives.group_advantage) == {"rewards", "group"}
    assert hyperparameters_of(objectives.leave_one_out) == {}


def test_defaults_of_the_signature_reach_the_recipe():
    recipe = make_recipe({**VALUES, "loss": {"cispo": {}}})
    assert (
        recipe.loss["cispo"]["ratio_max"]
        == inspect.signature(objectives.cispo).parameters["ratio_max"].default
    )


def test_streams_of_a_recipe():
    recipe = make_recipe({**VALUES, "method": "grpo", "token_reward": {"kl_in_reward": {"coef": 0.1}}})
    assert streams(recipe) == {"logp", "logp_old", "logp_ref", "advantage", "mask"}


def test_an_own_loss(own):
    source = (
        "def f(logp, advantage, mask, *, power: float = 2.0, other: int): return -logp * advantage * mask\n"
    )
    recipe = own(source, settings={"other": 3})
    assert recipe.loss["own.py:f"] == {"power": 2.0, "other": 3}
    assert resolve("own.py:f").__name__ == "f"


def test_an_own_loss_set_from_the_command_line(own):
    own("def f(logp, mask, *, power: float = 2.0): return -logp * mask\n")
    recipe = make_recipe({**VALUES, "method": "rloo"}, ["loss.own.py:f.power=3"])
    assert recipe.loss["own.py:f"] == {"power": 3}


def test_an_own_advantage_and_token_reward(own):
    recipe = own("def f(rewards, group): return rewards\n", "advantage")
    assert recipe.advantage == {"own.py:f": {}}
    assert own(
        "def f(logp, logp_ref, mask, *, coef: float = 1.0): return coef * (logp_ref - logp)\n", "token_reward"
    )


OWN_REFUSED = {
    "no function": ("def g(logp): return logp\n", "own.py: has no function `f`; it has g"),
    "not a function": ("f = 3\n", "own.py: has no function `f`"),
    "broken file": ("def f(:\n", "own.py: importing it raised SyntaxError"),
    "raises on import": ("1 / 0\n", "own.py: importing it raised ZeroDivisionError"),
    "exits on import": ("import sys\nsys.exit(0)\n", "own.py: importing it raised SystemExit"),
    "unknown data": (
        "def f(logp, logits, mask): return logp\n",
        "the trainer cannot supply `logits`; it supplies",
    ),
    "trains nothing": (
        "def f(advantage, mask): return advantage * mask\n",
        "reads neither `logp` nor `entropy`",
    ),
    "averaged": ("def f(logp, mask): return logp.mean()\n", "returned shape [], expected [2, 3]"),
    "detached": ("def f(logp, mask): return logp.detach()\n", "returned a loss without a gradient"),
    "not a tensor": ("def f(logp, mask): return 3\n", "returned int, not a tensor"),
    "raises": ("def f(logp, mask): raise ValueError('no, because')\n", "loss.own.py:f: no, because"),
    "raises otherwise": (
        "def f(logp, mask): raise KeyError('x')\n",
        "KeyError when tried on two rows of three tokens",
    ),
}


@pytest.mark.parametrize(("source", "message"), OWN_REFUSED.values(), ids=OWN_REFUSED.keys())
def test_own_losses_that_are_refused(refusal, source, message):
    assert message in refusal(source)


def test_an_own_advantage_of_the_wrong_shape(refusal):
    assert "returned shape [], expected [4]" in refusal(
        "def f(rewards, group): return rewards.mean()\n", "advantage"
    )


def test_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"loss.nowhere.py:f: nowhere.py: no such file"):
        make_recipe({**VALUES, "loss": {"nowhere.py:f": {}}})


def test_an_own_file_may_import_its_neighbour(own, tmp_path):
    (tmp_path / "neighbour.py").write_text("SCALE = 2.0\n")
    assert own("from neighbour import SCALE\ndef f(logp, mask): return SCALE * logp\n").loss


def test_a_loss_of_pairs_reads_what_its_settings_need():
    """PPL's KL is a parameter that may be None; which label is set decides whether the trainer fills it."""
    ppl = resolve("policy_labeled_preference")
    assert set(sides_of(ppl)) == {
        f"{name}_{side}" for name in ("logp", "mask") for side in ("chosen", "rejected")
    }
    for settings in ({}, {"label": "expected"}, {"label": "realised"}):
        assert sides_of(ppl, settings)["kl_rejected"] == ("kl", False)
        assert "kl" in streams_of(ppl, settings)
        assert try_out("pair_loss", ppl, settings) is None
    assert "kl" not in streams_of(ppl, {"label": "pseudo"})
    assert "kl" not in hyperparameters_of(ppl)
    assert sides_of(resolve("cpl"), {"alpha": 0.5}) == sides_of(resolve("cpl"))


def test_the_labels_of_ppl_on_a_language_model():
    """Its KL is that to the reference; F, the mean over rollouts of the behaviour policy, it has not."""
    pairs = {"rollout": {"engine": "dataset"}, "group_size": 2, "reduce": {"over": "pairs"}, "eval": None}
    values = {"model": "m", "task": {"pairs": "pairs.jsonl"}, "steps": 1, **pairs}

    def recipe(label: str, **more):
        return make_recipe({**values, "loss": {"policy_labeled_preference": {"label": label}}, **more})

    realised = recipe("realised", update={"kl": {"divergence": "forward"}}, reference="other")
    assert streams(realised) == {"logp", "mask", "kl", "preferred", "group"}
    assert "kl" not in streams(recipe("pseudo"))
    with pytest.raises(
        ConfigError, match="expected needs rollouts of the behaviour policy, and a causal_lm has none"
    ):
        recipe("expected")
