"""Completions of one prompt, for a look at what a model says."""

from dataclasses import dataclass
from typing import Any

import torch

from klent.errors import ConfigError
from klent.mixture.criteria import CRITERIA
from klent.models.load import LoadedModel, load_policy
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.target import Target
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.tasks import Prompt


def sample(
    model: str,
    prompt: str,
    *,
    count: int = 1,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    system: str | None = None,
) -> list[str]:
    """Sample completions; a model with a chat template gets the prompt as a user's message.

    Args:
        model: alias, folder or hub id.
        prompt: what to complete.
        count: how many completions.
        max_tokens: longest completion, tokens.
        temperature, top_p, top_k: see :func:`klent.rollout.sampling.sample_tokens`.
        seed: same seed, same text.
        system: system prompt; needs a chat template.
    """
    loaded = _load(model)
    options = SamplingOptions(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k)
    engine = TransformersEngine(loaded, options)
    asked = _asked(loaded, prompt, system)
    return [rollout.text for rollout in engine.generate([asked], group_size=count, seed=seed)]


@dataclass(frozen=True)
class MixedText:
    """A completion drawn from a mixture, and a number of each of its tokens.

    Attributes:
        text: the completion.
        tokens: its pieces.
        alpha: share of the policy.
        kl_policy: KL(q ‖ policy), nats.
        kl_target: KL(q ‖ target), nats.
        log_weight: log(policy/q) of the token, nats.
    """

    text: str
    tokens: list[str]
    alpha: list[float]
    kl_policy: list[float]
    kl_target: list[float]
    log_weight: list[float]


def sample_mixture(
    model: str,
    target: str,
    prompt: str,
    *,
    alpha: str = "chernoff",
    target_prompt: str | None = None,
    target_temperature: float | None = None,
    count: int = 1,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    system: str | None = None,
) -> list[MixedText]:
    """The same from the mixture of ``model``, the policy, with a target.

    Args:
        model, prompt, count, max_tokens, temperature, top_p, top_k, seed, system: as of :func:`sample`.
        target: alias, folder or hub id; the same as ``model`` is the same model.
        alpha: as of :func:`read_alpha`.
        target_prompt: what the target is asked instead; ``{prompt}`` stands for the prompt.
        target_temperature: divides the target's logits; None is ``temperature``.
    """
    share, value = read_alpha(alpha)
    loaded = _load(model)
    other = loaded if target == model else _load(target)
    options = SamplingOptions(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k)
    heat = temperature if target_temperature is None else target_temperature
    engine = MixtureEngine(
        loaded, Target(other, prompt=target_prompt, temperature=heat), options, alpha=share, value=value
    )
    asked = _asked(loaded, prompt, system)
    found = []
    for rollout in engine.generate([asked], group_size=count, seed=seed):
        assert rollout.mixture is not None
        assert rollout.logp is not None
        found.append(
            MixedText(
                text=rollout.text,
                tokens=[str(loaded.tokenizer.decode([token])) for token in rollout.tokens.tolist()],
                alpha=rollout.mixture.alpha.tolist(),
                kl_policy=rollout.mixture.kl_policy.tolist(),
                kl_target=rollout.mixture.kl_target.tolist(),
                log_weight=(rollout.mixture.logp_policy - rollout.logp).tolist(),
            )
        )
    return found


def read_alpha(text: str) -> tuple[Any, float | None]:
    """``0.5``, ``chernoff`` or ``ess=0.5``: the share of the policy or its criterion, and what that aims at.

    >>> read_alpha("0.5"), read_alpha("chernoff"), read_alpha("ess=0.5")
    ((0.5, None), ('chernoff', None), ('ess', 0.5))
    """
    name, given, aim = text.partition("=")
    criterion = name in CRITERIA
    if criterion and bool(given) != (name in ("kl_budget", "entropy", "ess")):
        raise ConfigError(f"--alpha {text}: {name} {'takes no value' if given else 'needs a value'}")
    try:
        number = float(aim if criterion else text) if given or not criterion else None
    except ValueError as error:
        known = "a number in [0, 1], chernoff, snr, kl_budget=NATS, entropy=NATS or ess=FRACTION"
        raise ConfigError(f"--alpha {text}: expected {known}") from error
    if criterion:
        return name, number
    if number is None or not 0 <= number <= 1:
        raise ConfigError(f"--alpha {text}: the policy's share lies in [0, 1]")
    return number, None


def _load(model: str) -> LoadedModel:
    loaded = load_policy(model)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def _asked(loaded: LoadedModel, prompt: str, system: str | None) -> Prompt:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    chat = system is not None or bool(loaded.tokenizer.chat_template)
    return Prompt("prompt", messages if chat else prompt)
