"""What a model can do, found out by running it two ways on made-up tokens and comparing the numbers.

No list of model names to keep: recurrent layers, capped scores, attention that ignores a mask and heads that
do more than a product all show in the numbers. A way that raises is not taken.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from klent.head.stats import TokenStats
from klent.policies.causal_lm.model import CausalModel, TextConfig, attention_window, body_of
from klent.policies.causal_lm.packing import Completion, Pack, make_groups, pack

__all__ = ["agrees", "body_of", "head_is_linear", "head_options", "takes_shared_prompt"]

_REFUSALS = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError)


class PackedPolicy(Protocol):
    """A policy that can be asked: statistics of packed rows, in blocks where ``takes_blocks`` is set."""

    takes_blocks: bool

    @property
    def model(self) -> CausalModel:
        """What it is made of."""
        ...

    def __call__(self, rows: Pack) -> TokenStats:
        """Statistics of the completion tokens of ``rows``."""
        ...


@contextmanager
def evaluating(model: CausalModel) -> Iterator[None]:
    """Within this block the model has neither dropout nor gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def agrees(
    model: CausalModel, usual: Callable[[], Tensor], other: Callable[[], Tensor], *, rounding: float = 2e-2
) -> bool:
    """Whether another way of running a model gives the numbers of the usual one.

    Args:
        model: the model that both run; in eval mode meanwhile.
        usual: the numbers as the model gives them.
        other: the same numbers the other way.
        rounding: largest difference for bfloat16 and float16, as a fraction of the largest number (or of 1,
            if that is more). 1e-4 for float32 and float64: a wrong mask or head is off by orders more.

    Returns:
        False also where one of the two raises, or gives a number that is not finite.
    """
    try:
        with evaluating(model):
            expected, actual = usual(), other()
    except _REFUSALS:
        return False
    if expected.shape != actual.shape or not (expected.isfinite().all() and actual.isfinite().all()):
        return False
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else rounding
    return bool((expected - actual).abs().max() <= tolerance * expected.abs().max().clamp_min(1.0))


def head_options(model: CausalModel) -> dict[str, float] | None:
    """The ``scale`` and ``softcap`` with which :func:`klent.token_stats` is this head; None if it is not.

    The numbers are those of the model's configuration. Configurations also carry numbers that nobody reads,
    so the model is asked whether it uses them.
    """
    config = model.config.get_text_config()
    ids = torch.arange(1, 5, device=model.device)[None] % config.vocab_size
    with evaluating(model):
        logits = model(input_ids=ids, use_cache=False).logits.float()  # a model that cannot run raises here
    configured = _configured_options(config)
    # The configured ones first: small logits look the same with and without a cap, and grow in training.
    for options in (configured, {}) if configured else ({},):
        if agrees(model, lambda: logits, partial(_fused_logits, model, ids, **options)):
            return options
    return None


def head_is_linear(model: CausalModel) -> bool:
    """Whether the logits are the last hidden state times the output embedding and nothing else."""
    return head_options(model) == {}


def _fused_logits(
    model: CausalModel, ids: Tensor, *, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """Logits as the fused head computes them, from hidden states and output embedding."""
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError("the model has no output embedding")
    hidden = body_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    logits = linear(hidden, head.weight, getattr(head, "bias", None)).float() * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _configured_options(config: TextConfig) -> dict[str, float]:
    """What a configuration says of the logits, under the names that transformers' models give it."""

    def number(name: str) -> float:
        value = getattr(config, name, None)
        return float(value) if isinstance(value, int | float) and value else 1.0

    scale = number("logit_scale") * number("lm_head_multiplier") / number("logits_scaling")
    softcap = getattr(config, "final_logit_softcapping", None)
    return ({} if scale == 1.0 else {"scale": scale}) | ({"softcap": float(softcap)} if softcap else {})


def takes_shared_prompt(policy: PackedPolicy, *, longest: int) -> bool:
    """Whether packing a group behind one prompt gives the log-probabilities of one row per completion.

    A policy that does is also asked whether its attention can be computed in blocks
    (:mod:`klent.policies.causal_lm.blocks`); ``policy.takes_blocks`` holds the answer.

    Args:
        policy: the policy to ask.
        longest: the longest prompt and completion expected, tokens: a sliding window shorter than that is
            refused, because the made-up rows are too short to show it.
    """
    window = attention_window(policy.model)
    if window is not None and longest > window:
        return False
    apart, shared = _made_up_rows(policy.model.config.get_text_config().vocab_size)
    policy.takes_blocks = False
    if not agrees(policy.model, lambda: policy(apart).logp, lambda: policy(shared).logp):
        return False
    policy.takes_blocks = agrees(
        policy.model, lambda: policy(apart).logp, lambda: _logp_in_blocks(policy, shared)
    )
    return True


def _logp_in_blocks(policy: PackedPolicy, rows: Pack) -> Tensor:
    policy.takes_blocks = True
    return policy(rows).logp


def _made_up_rows(size: int) -> tuple[Pack, Pack]:
    """Two completions of one prompt, in two rows and in one."""
    prompt = [(7 * i + 3) % size for i in range(6)]
    pair = [
        Completion(k, prompt, torch.tensor([(11 * i + 5 * k + 1) % size for i in range(5)])) for k in range(2)
    ]
    apart, shared = (
        pack(make_groups(pair, shared=shared, budget=64), shared=shared) for shared in (False, True)
    )
    return apart, shared
