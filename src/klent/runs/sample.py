"""Completions of one prompt, from one model or from a mixture of two."""

import math
from dataclasses import dataclass
from typing import cast

from klent.errors import ConfigError
from klent.mixture.criteria import CRITERIA, Criterion
from klent.models.load import LoadedModel, load_policy
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.target import Target
from klent.rollout.transformers_engine import SamplingOptions
from klent.runs.engines import Opened, plain_sampler
from klent.tasks import Prompt

_RANGES = {"kl_budget": "be more than 0 nats", "ess": "lie in (0, 1]"}


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
    opened: Opened | None = None,
) -> list[str]:
    """Sample completions; a model with a chat template gets the prompt as a user message.

    Args:
        model: alias, folder or hub id.
        prompt: what to complete.
        count: how many completions.
        max_tokens: longest completion, tokens.
        temperature: divides the logits; 0 is greedy.
        top_p, top_k: see :func:`klent.rollout.sampling.sample_tokens`.
        seed: same seed, same text.
        system: system prompt; needs a chat template.
        opened: the model, where it is loaded already; or values, whose player then writes.

    Raises:
        ConfigError: a player at a temperature other than 1.
    """
    opened = opened or Opened(load_policy(model, device="auto"))
    options = SamplingOptions(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k)
    engine = plain_sampler(opened, options)
    prompts = [_as_prompt(opened.loaded, prompt, system)]
    return [rollout.text for rollout in engine.generate(prompts, group_size=count, seed=seed)]


@dataclass(frozen=True)
class MixedText:
    """A completion drawn from a mixture, with the numbers of each of its tokens.

    Attributes:
        text: the completion.
        tokens: its pieces.
        alpha: weight of the policy, per token.
        kl_policy: KL(q ‖ policy), nats per token.
        kl_target: KL(q ‖ target), nats per token.
        log_weight: log(policy/q), nats per token.
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
    """Sample completions from the mixture of ``model``, the policy, with a target.

    Args:
        model, prompt, count, max_tokens, temperature, top_p, top_k, seed, system: as of :func:`sample`.
        target: alias, folder or hub id; where it equals ``model``, one model serves as both.
        alpha: as of :func:`read_alpha`.
        target_prompt: the target's prompt instead; ``{prompt}`` stands for the prompt.
        target_temperature: divides the target's logits; None is ``temperature``.
    """
    share, value = read_alpha(alpha)
    loaded = load_policy(model, device="auto")
    other = loaded if target == model else load_policy(target, device="auto")
    options = SamplingOptions(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k)
    temperature_of_target = temperature if target_temperature is None else target_temperature
    other_target = Target(other, prompt=target_prompt, temperature=temperature_of_target)
    engine = MixtureEngine(loaded, other_target, options, alpha=share, value=value)
    prompts = [_as_prompt(loaded, prompt, system)]
    completions = []
    for rollout in engine.generate(prompts, group_size=count, seed=seed):
        assert rollout.mixture is not None
        assert rollout.logp is not None
        completions.append(
            MixedText(
                text=rollout.text,
                tokens=[str(loaded.tokenizer.decode([token])) for token in rollout.tokens.tolist()],
                alpha=rollout.mixture.alpha.tolist(),
                kl_policy=rollout.mixture.kl_policy.tolist(),
                kl_target=rollout.mixture.kl_target.tolist(),
                log_weight=(rollout.mixture.logp_policy - rollout.logp).tolist(),
            )
        )
    return completions


def read_alpha(text: str) -> tuple[float | Criterion, float | None]:
    """``0.5``, ``chernoff`` or ``ess=0.5``: the policy's weight or a criterion, and the criterion's value.

    >>> read_alpha("0.5"), read_alpha("chernoff"), read_alpha("ess=0.5")
    ((0.5, None), ('chernoff', None), ('ess', 0.5))
    """
    name, equals, value = text.partition("=")
    if name in CRITERIA:
        if bool(equals) != (name in ("kl_budget", "entropy", "ess")):
            raise ConfigError(f"--alpha {text}: {name} {'takes no value' if equals else 'needs a value'}")
        number = _read_number(value, text) if equals else None
        if number is not None and ((number == 0 and name != "entropy") or (number > 1 and name == "ess")):
            raise ConfigError(f"--alpha {text}: {name} must {_RANGES[name]}")
        return cast(Criterion, name), number
    weight = _read_number(text, text)
    if not 0 <= weight <= 1:
        raise ConfigError(f"--alpha {text}: the policy's weight must lie in [0, 1]")
    return weight, None


def _read_number(number: str, text: str) -> float:
    try:
        value = float(number)
        if not 0 <= value < math.inf:  # NaN is neither
            raise ValueError(number)
        return value
    except ValueError as error:
        valid = "a number in [0, 1], chernoff, snr, kl_budget=NATS, entropy=NATS or ess=FRACTION"
        raise ConfigError(f"--alpha {text}: expected {valid}") from error


def _as_prompt(loaded: LoadedModel, prompt: str, system: str | None) -> Prompt:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    chat = system is not None or bool(loaded.tokenizer.chat_template)
    return Prompt("prompt", messages if chat else prompt)
