"""klent's losses in verl's registries, held against verl's own where both have one."""

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed")

from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from klent.errors import ConfigError
from klent.integrations.verl import METHODS, register

SHAPE = (6, 11)


def numbers(spread: float = 0.3) -> dict[str, torch.Tensor]:
    """Two optimizer steps into an update: ratios on both sides of the clip, and responses of unequal length."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(SHAPE, generator=generator) * 3
    new = (old + spread * torch.randn(SHAPE, generator=generator)).requires_grad_()
    lengths = torch.tensor([11, 7, 1, 5, 9, 3])
    mask = torch.arange(SHAPE[1])[None] < lengths[:, None]
    advantages = torch.randn(SHAPE[0], 1, generator=generator).expand(SHAPE) * mask
    return {"old_log_prob": old, "log_prob": new, "advantages": advantages, "response_mask": mask}


def config(**values: float) -> ActorConfig:
    return ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **values)


@pytest.mark.parametrize("average", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_grpo_is_verls_vanilla(average):
    """Clipping at 0.2 on both sides; verl's third clip, at a ratio of 3, is out of reach here."""
    both = []
    for mode in ("klent/grpo", "vanilla"):
        given = numbers()
        loss_of = core_algos.get_policy_loss_fn(mode)
        loss, metrics = loss_of(**given, loss_agg_mode=average, config=config(clip_ratio=0.2))
        loss.backward()
        both.append((float(loss), given["log_prob"].grad, metrics))
    (mine, gradient, metrics), (theirs, expected, released) = both
    assert mine == pytest.approx(theirs, rel=1e-6)
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-5)
    assert float((expected != 0).float().mean()) > 0.2
    clipped = metrics["klent/clip_high"] + metrics["klent/clip_low"]
    assert clipped == pytest.approx(released["actor/pg_clipfrac"], rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_weights_of_the_sampler_multiply_the_loss(weighted):
    given = numbers()
    weights = torch.full(SHAPE, 0.5) if weighted else None
    loss, _ = core_algos.get_policy_loss_fn("klent/grpo")(
        **given, config=config(), rollout_is_weights=weights
    )
    plain, _ = core_algos.get_policy_loss_fn("klent/grpo")(**given, config=config())
    assert float(loss) == pytest.approx(float(plain) * (0.5 if weighted else 1.0), rel=1e-6)


@pytest.mark.parametrize(("mine", "theirs"), [("klent/rloo", "rloo"), ("klent/grpo", "grpo")])
def test_advantages_are_verls(mine, theirs):
    """verl adds 1e-6 to a group's deviation."""
    rewards = torch.tensor([1.0, 0.0, 0.25, 0.5, 0.5, 2.0])
    mask = numbers()["response_mask"]
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    given = {
        "token_level_rewards": torch.where(last, rewards[:, None], 0.0),
        "response_mask": mask.float(),
        "index": np.array(["b", "a", "b", "a", "a", "b"], dtype=object),
    }
    found, _ = core_algos.get_adv_estimator_fn(mine)(**given, config=None)
    expected, _ = core_algos.get_adv_estimator_fn(theirs)(**given, config=None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float(expected.abs().max()) > 0.5


def test_methods_that_verl_has_the_numbers_for():
    assert {"klent/grpo", "klent/dapo", "klent/rloo", "klent/gspo", "klent/reinforce"} <= set(METHODS)
    assert not {"klent/ppo", "klent/kl_cov", "klent/dpo", "klent/thermostat", "klent/sft"} & set(METHODS)


def test_your_own_objective_and_what_is_refused():
    register("mine", {"method": "cispo" if "klent/cispo" in METHODS else "grpo"})
    assert "mine" in core_algos.POLICY_LOSS_REGISTRY
    for objective, words in (
        (
            {"method": "grpo", "loss": {"entropy_loss": {"coef": -0.1}}},
            "reads entropy, which verl does not hand",
        ),
        ({"method": "grpo", "loss": {"kl_in_loss": {"coef": 0.1}}}, "reads logp_ref"),
        ({"method": "top20"}, "select or weigh"),
        ("ppo", "objective needs value"),
    ):
        with pytest.raises(ConfigError, match=words):
            register("bad", objective)
    assert "bad" not in core_algos.POLICY_LOSS_REGISTRY
