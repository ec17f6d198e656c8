"""Audits of other packages: on stand-ins with their signatures, and on the packages where installed."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from klent.audit import Certificate
from klent.audit.command import audit_command
from klent.audit.peers import PeerAudit, audit_peer
from klent.audit.peers import trl as trl_adapter
from klent.audit.peers import verl as verl_adapter
from klent.errors import ConfigError, KlentError


@dataclass
class FakeGRPOConfig:
    output_dir: str
    report_to: str
    bf16: bool
    use_cpu: bool
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    use_bias_correction_kl: bool = True
    importance_sampling_level: str = "token"


class FakeGRPOTrainer:
    def __init__(self) -> None:
        raise AssertionError("a trainer must not be made: it loads a model")

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        logp, _, _ = self._get_per_token_logps_and_entropies(model, ids, ids, 3, compute_entropy=True)  # type: ignore[attr-defined]
        mask, old = inputs["completion_mask"], inputs["old_per_token_logps"]
        ratio = (logp - old).exp()
        loss = -inputs["advantages"] * ratio
        if self.beta:  # type: ignore[attr-defined]
            gap = inputs["ref_per_token_logps"] - logp
            kl = gap.exp() - gap - 1
            loss = loss + self.beta * kl * (ratio if self.args.use_bias_correction_kl else 1)  # type: ignore[attr-defined]
        self._metrics["train"]["kl"].append(0.0)  # type: ignore[attr-defined]
        return (loss * mask).sum() / inputs["num_items_in_batch"]


class FakeRLOOTrainer:
    def _generate_and_score_completions(self, inputs: list[dict[str, str]]) -> dict[str, Tensor]:
        _, completions, _ = self._generate([x["prompt"] for x in inputs])  # type: ignore[attr-defined]
        width = max(map(len, completions))
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in completions])
        per_token: Callable[..., Any] = self._get_per_token_logps_and_entropies  # type: ignore[attr-defined]
        old, _, _ = per_token(self.model, mask, mask, width)  # type: ignore[attr-defined]
        reference, _, _ = per_token(self.ref_model, mask, mask, width)  # type: ignore[attr-defined]
        rewards = self._calculate_rewards(inputs, [], [], completions)[:, 0]  # type: ignore[attr-defined]
        rewards = rewards - self.beta * ((old - reference) * mask).sum(dim=1)  # type: ignore[attr-defined]
        return {
            "prompt_ids": mask,
            "prompt_mask": mask,
            "completion_mask": mask,
            "old_logps": (old * mask).sum(dim=1),
            "advantages": rewards - rewards.flip(0),
        }

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        logp, _, _ = self._get_per_token_logps_and_entropies(model)  # type: ignore[attr-defined]
        ratio = ((logp * inputs["completion_mask"]).sum(dim=1) - inputs["old_logps"]).exp()
        return -(ratio * inputs["advantages"]).mean()


def fake_kl_penalty(logprob: Tensor, ref_logprob: Tensor, kl_penalty: str) -> Tensor:
    gap = ref_logprob - logprob
    value = {
        "k1": -gap,
        "abs": gap.abs(),
        "k2": gap**2 / 2,
        "k3": (gap.exp() - gap - 1).clamp(-10, 10),
        "low_var_kl": (gap.exp() - gap - 1).clamp(-10, 10),
    }[kl_penalty.removesuffix("+")]
    return value.detach() + gap**2 / 2 - (gap**2 / 2).detach() if kl_penalty.endswith("+") else value


def fake_vanilla(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    assert (loss_agg_mode, config.clip_ratio) == ("token-mean", 0.2)
    ratio = (log_prob - old_log_prob).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    return (loss * response_mask).sum() / response_mask.sum(), {}


@dataclass
class FakeActorConfig:
    strategy: str
    rollout_n: int
    ppo_micro_batch_size_per_gpu: int
    clip_ratio: float = 0.2


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for both packages."""
    trl = ModuleType("trl")
    vars(trl).update(
        __version__="0.0.fake",
        GRPOConfig=FakeGRPOConfig,
        RLOOConfig=FakeGRPOConfig,
        GRPOTrainer=FakeGRPOTrainer,
        RLOOTrainer=FakeRLOOTrainer,
    )
    core, config = ModuleType("verl.trainer.ppo.core_algos"), ModuleType("verl.workers.config")
    vars(core).update(kl_penalty=fake_kl_penalty, POLICY_LOSS_REGISTRY={"vanilla": fake_vanilla, "x": None})
    vars(config).update(ActorConfig=FakeActorConfig)
    modules = {"trl": trl, "verl.trainer.ppo.core_algos": core, "verl.workers.config": config}
    for name in ("verl", "verl.trainer", "verl.trainer.ppo", "verl.workers"):
        modules[name] = ModuleType(name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def no_rloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLOO's group of two makes it the slow one."""
    monkeypatch.setattr(trl_adapter, "audit_rloo", lambda *_, **__: Certificate("RLOOTrainer"))


def on_policy(audit: PeerAudit) -> dict[str, dict[str, float]]:
    """Loss -> coefficients on-policy, problems aside."""
    assert all(certificate.problem is None for certificate in audit.certificates), audit
    return {c.target: dict(c.on_policy.coefficients) for c in audit.certificates}


def check_trl(audit: PeerAudit) -> None:
    """What TRL's objectives are known to follow on-policy; its defaults are those of 1.16."""
    known = on_policy(audit)
    grpo, rloo = "GRPOTrainer", "RLOOTrainer"
    assert known[f"{grpo} loss, defaults"] == pytest.approx({"expected_reward": -1})
    assert known[f"{grpo} loss, beta=0.04"] == pytest.approx(
        {"expected_reward": -1, "reverse_kl_token": 0.04}
    )
    corrected, not_corrected = (f"{grpo} KL term alone, use_bias_correction_kl={x}" for x in (True, False))
    assert known[corrected] == pytest.approx({"reverse_kl_token": 1})
    assert known[not_corrected] == pytest.approx({"forward_kl_token": 1})
    assert known[f"{rloo} KL term alone, defaults"] == pytest.approx({"reverse_kl": 1})
    off = {c.target: c.off_policy for c in audit.certificates}
    assert off[corrected].follows == "reverse_kl_token"
    assert off[corrected].prefixes == "behaviour"
    assert off[not_corrected].follows == "unknown"


def check_verl(audit: PeerAudit) -> None:
    """What verl's objectives are known to follow on-policy."""
    known = on_policy(audit)
    assert known["kl_penalty k1, in the loss"] == {}
    assert known["kl_penalty k2, in the loss"] == pytest.approx({"reverse_kl_token": 1})
    assert known["kl_penalty abs, in the loss"] == pytest.approx({"total_variation_token": 2})
    for name in "k3", "low_var_kl":
        assert known[f"kl_penalty {name}, in the loss"] == pytest.approx({"forward_kl_token": 1})
        assert known[f"kl_penalty {name}+, in the loss"] == pytest.approx({"reverse_kl_token": 1})
    assert known["kl_penalty k1, in the reward"] == pytest.approx({"reverse_kl": 1})
    assert known["kl_penalty k3, in the reward"] == pytest.approx({"reverse_kl": 1, "forward_kl_token": -1})
    assert known["policy loss vanilla"] == pytest.approx({"expected_reward": -1})
    clamped = {c.target: c.on_policy.far_error for c in audit.certificates}
    assert clamped["kl_penalty k3, in the loss"] > 0.1
    assert clamped["kl_penalty k2, in the loss"] < 1e-6


@pytest.mark.usefixtures("fake")
def test_the_adapter_of_trl() -> None:
    audit = audit_peer("trl")
    check_trl(audit)
    assert audit.version == "0.0.fake"
    rloo = on_policy(audit)["RLOOTrainer loss, defaults"]
    assert rloo == pytest.approx({"expected_reward": -1})  # the stand-in's beta is 0
    assert json.loads(json.dumps(audit.to_dict(), allow_nan=False))["package"] == "trl"


@pytest.mark.usefixtures("fake")
def test_the_adapter_of_verl() -> None:
    audit = audit_peer("verl")
    check_verl(audit)
    assert "policy loss x" not in on_policy(audit)


@pytest.mark.usefixtures("fake", "no_rloo")
def test_settings_reach_the_configuration() -> None:
    assert on_policy(audit_peer("trl", {"beta": 0.3}))["GRPOTrainer loss, beta=0.3"] == pytest.approx(
        {"expected_reward": -1, "reverse_kl_token": 0.3}
    )
    with pytest.raises(ConfigError, match=r"GRPOConfig: .*unexpected keyword argument 'betta'"):
        audit_peer("trl", {"betta": 0.3})
    with pytest.raises(ConfigError, match=r"ActorConfig: .*unexpected keyword argument 'clip'"):
        audit_peer("verl", {"clip": 0.3})


@pytest.mark.usefixtures("fake", "no_rloo")
def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert audit_command("trl", [], json=False, picture=None) == 0
    text = capsys.readouterr().out
    assert "trl 0.0.fake" in text
    assert "0.04 reverse_kl_token - expected_reward" in text
    assert audit_command("verl", [], json=True, picture=None) == 0
    assert len(json.loads(capsys.readouterr().out)["certificates"]) == 13


@pytest.mark.usefixtures("fake", "no_rloo")
def test_a_version_that_klent_does_not_know_is_a_problem_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(self: Any, model: Any, inputs: Any) -> Tensor:
        return self.attribute_of_tomorrow

    monkeypatch.setattr(FakeGRPOTrainer, "_compute_loss", changed)
    monkeypatch.setenv("COLUMNS", "200")
    assert audit_command("trl", [], json=False, picture=None) == 1
    assert "has no attribute 'attribute_of_tomorrow'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("package", "adapter"), [("trl", trl_adapter), ("verl", verl_adapter)])
def test_a_missing_package_gets_the_line_that_installs_it(
    package: str, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KlentError, match="cannot be imported") as found:
        audit_peer(package)
    assert adapter.INSTALL in str(found.value)
    assert adapter.INSTALL.startswith("pip install ")


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
def test_trl_itself() -> None:
    audit = audit_peer("trl")
    check_trl(audit)
    rloo = on_policy(audit)["RLOOTrainer loss, defaults"]
    assert rloo == pytest.approx({"expected_reward": -1, "reverse_kl": 0.05})


@pytest.mark.skipif(find_spec("verl") is None or find_spec("ray") is None, reason="verl is not installed")
def test_verl_itself() -> None:
    check_verl(audit_peer("verl"))
