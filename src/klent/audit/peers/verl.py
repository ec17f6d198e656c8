"""verl's losses: ``kl_penalty`` and the registered policy losses, with the actor's default configuration."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from torch import Tensor

from klent.audit.call import Loss
from klent.audit.certificate import Certificate, audit_loss
from klent.audit.peers import PeerAudit
from klent.audit.peers.linear import per_token
from klent.audit.rewards import in_reward
from klent.errors import ConfigError, KlentError

INSTALL = (
    "pip install --no-deps verl && pip install ray tensordict omegaconf hydra-core codetiming orjson "
    "(with its own pins verl asks for an older transformers than klent)"
)
#: a registered policy loss: the mean over tokens, and metrics
PolicyLoss = Callable[..., tuple[Tensor, object]]
#: kinds of ``kl_loss_type`` and ``kl_penalty``; those with + have k2's gradient
ESTIMATORS = ("k1", "abs", "k2", "k3", "low_var_kl", "k1+", "abs+", "k3+", "low_var_kl+")
#: policy losses that obey ``loss_agg_mode``, so that the shares of tokens can be recovered
POLICY_LOSSES = ("vanilla", "dppo_tv", "dppo_kl", "gspo", "gpg", "clip_cov", "kl_cov", "cispo")
#: settings that a configuration requires
REQUIRED = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": 1}


def audit(settings: Mapping[str, object]) -> PeerAudit:
    """The certificates of every KL estimator, in the loss and in the reward, and of the policy losses."""
    core = load()
    config = _config(settings)
    certificates = [audit_kl(core.kl_penalty, estimator) for estimator in ESTIMATORS]
    certificates += [audit_kl(core.kl_penalty, name, reward=True) for name in ("k1", "k2", "k3")]
    registered = [name for name in POLICY_LOSSES if name in core.POLICY_LOSS_REGISTRY]
    certificates += [audit_policy_loss(core.POLICY_LOSS_REGISTRY[name], config, name) for name in registered]
    return PeerAudit("verl", _version(), tuple(certificates))


def load() -> ModuleType:
    """The module of the installed verl that holds its losses.

    Raises:
        KlentError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("verl.trainer.ppo.core_algos")
    except ImportError as error:
        raise KlentError(f"verl cannot be imported ({error}); install it: {INSTALL}") from error


def audit_kl(kl_penalty: Callable[..., Tensor], estimator: str, *, reward: bool = False) -> Certificate:
    """``kl_penalty`` as a loss, or as a penalty in the reward (k1 by default), with undiscounted returns."""

    def penalty(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return kl_penalty(logprob=logp, ref_logprob=logp_ref, kl_penalty=estimator)

    def paid(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return -penalty(logp, logp_ref, mask)

    function = in_reward(paid) if reward else penalty
    placement = "in the reward" if reward else "in the loss"
    wiring: dict[str | int, str] = {name: name for name in ("logp", "logp_ref", "mask")}
    return audit_loss(Loss(function, {}, wiring), f"kl_penalty {estimator}, {placement}")


def audit_policy_loss(function: PolicyLoss, config: object, name: str) -> Certificate:
    """A registered policy loss, its mean over tokens multiplied by their number."""
    return audit_loss(
        Loss(
            partial(_policy_loss, function, config),
            {},
            {name: name for name in ("logp", "logp_old", "advantage", "entropy", "mask")},
        ),
        f"policy loss {name}",
    )


def _policy_loss(
    function: PolicyLoss,
    config: object,
    *,
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    entropy: Tensor,
    mask: Tensor,
) -> Tensor:
    response_mask = mask.to(logp.dtype)
    mean, _ = function(
        old_log_prob=logp_old,
        log_prob=logp,
        advantages=advantage,
        response_mask=response_mask,
        loss_agg_mode="token-mean",
        config=config,
    )
    return per_token(mean * response_mask.sum(), logp, entropy)


def _config(settings: Mapping[str, object]) -> object:
    config: Callable[..., object] = importlib.import_module("verl.workers.config").ActorConfig
    try:
        return config(**{**REQUIRED, **settings})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"ActorConfig: {error}") from error


def _version() -> str:
    try:
        return version("verl")
    except PackageNotFoundError:
        return "not known"
