"""What a model can do, found out by running it two ways on made-up tokens and comparing the numbers.

No list of model names to keep: recurrent layers, capped scores, attention that ignores a mask and heads that
do more than a product all show in the numbers. A way that raises is not taken.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from klent.errors import ModelError
from klent.head.reference import full_logit_stats
from klent.head.stats import TokenStats
from klent.models.exact import close, made_up_length
from klent.policies.causal_lm.model import CausalModel, TextConfig, attention_window, body_of
from klent.policies.causal_lm.packing import Completion, Pack, completions, join_groups, make_groups, pack
from klent.streams.batch import Batch

__all__ = [
    "agrees",
    "body_of",
    "head_is_linear",
    "head_options",
    "logits_alone",
    "logp_alone",
    "made_up_rows",
    "read_alone",
    "takes_joined_rows",
    "takes_shared_prompt",
]

REFUSALS = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError)

STIR = 0.05  # size of the numbers that stand for weights which are still 0


class PackedPolicy(Protocol):
    """A policy that can be asked: statistics of packed rows, in blocks where ``takes_blocks`` is set."""

    takes_blocks: bool
    fused: bool
    temperature: float

    @property
    def model(self) -> CausalModel:
        """What it is made of."""
        ...

    def __call__(self, rows: Pack) -> TokenStats:
        """Statistics of the completion tokens of ``rows``."""
        ...


@contextmanager
def evaluating(model: CausalModel) -> Iterator[None]:
    """Within this block the model has neither dropout nor gradients, and no trained weight that is all zeros.

    Adapters and biases start at 0 and then look as if they were not there; they are given numbers meanwhile.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        zeros = [(p, p.clone()) for _, p in model.named_parameters() if p.requires_grad and not p.any()]
        try:
            for parameter, _ in zeros:
                numbers = torch.arange(parameter.numel(), device=parameter.device, dtype=torch.float32)
                parameter.copy_((numbers.cos() * STIR).view(parameter.shape))
            yield
        finally:
            for parameter, value in zeros:
                parameter.copy_(value)
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
    except REFUSALS:
        return False
    return close(expected, actual, model.dtype, rounding=rounding)


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
        raise ValueError("the model has no output embedding (head); use a causal language model")
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
    _, apart, shared = made_up_rows(policy.model, longest)
    policy.takes_blocks = False
    if not agrees(policy.model, lambda: policy(apart).logp, lambda: policy(shared).logp):
        return False
    policy.takes_blocks = agrees(
        policy.model, lambda: policy(apart).logp, lambda: _logp_in_blocks(policy, shared)
    )
    return True


def takes_joined_rows(policy: PackedPolicy, *, longest: int) -> bool:
    """Whether prompts behind one another in a row give the log-probabilities of rows of their own.

    Asked under one mask and, where the policy takes blocks, in blocks: prompts with several completions, and
    prompts with one completion each, which are laid out as plain sequences.

    Args:
        policy: the policy to ask, after :func:`takes_shared_prompt` has said yes.
        longest: as there.
    """
    items, _, _ = made_up_rows(policy.model, longest)
    takes_blocks = policy.takes_blocks
    try:
        for kept in (items, items[1:]):
            (row,) = join_groups(make_groups(kept, shared=True, budget=64), longest=1 << 30)
            apart, joined = pack([[item] for item in row], shared=False), pack([row], shared=True)
            for policy.takes_blocks in {False, takes_blocks}:
                if not agrees(policy.model, partial(_logp, policy, apart), partial(_logp, policy, joined)):
                    return False
    finally:
        policy.takes_blocks = takes_blocks
    return True


def _logp(policy: PackedPolicy, rows: Pack) -> Tensor:
    return policy(rows).logp


def _logp_in_blocks(policy: PackedPolicy, rows: Pack) -> Tensor:
    policy.takes_blocks = True
    return policy(rows).logp


def require_rows(policy: PackedPolicy) -> None:
    """Refuse a model that gives a row other numbers beside other rows; give up the fused head if that is the cause.

    The witness is each row alone: not padded, not packed, through the model's own head.

    Raises:
        ModelError: the policy's numbers are not those of the rows alone.
    """
    items, apart, _ = made_up_rows(policy.model)
    model, temperature = policy.model, policy.temperature
    if temperature <= 0:
        return

    def alone() -> Tensor:
        return torch.cat([_numbers(_read_alone(model, item, temperature)) for item in items], dim=1)

    while not agrees(model, alone, lambda: _numbers(policy(apart))):
        if not policy.fused:
            raise ModelError(
                "the model cannot be trained exactly: the log-probabilities of a row change with the lengths of the "
                "other rows in the batch. Use another model"
            )
        policy.fused = False


def _numbers(stats: TokenStats) -> Tensor:
    assert stats.entropy is not None
    return torch.stack([stats.logp, stats.entropy]).float()


def read_alone(policy: PackedPolicy, batch: Batch, row: int) -> Tensor:
    """Log-probabilities of one episode's tokens, nats ``[L]``: its row alone, without padding, packing or cache."""
    item = completions(batch, [row])[0]
    was_training = policy.model.training
    policy.model.eval()
    with torch.no_grad():
        stats = _read_alone(policy.model, item, policy.temperature)
    policy.model.train(was_training)
    return stats.logp


def _read_alone(model: CausalModel, item: Completion, temperature: float) -> TokenStats:
    logits = logits_alone(model, item.prompt_ids, item.tokens)
    return full_logit_stats(logits.float(), item.tokens.to(model.device), temperature)


def logits_alone(model: CausalModel, prompt: Sequence[int], tokens: Sequence[int] | Tensor) -> Tensor:
    """The logits that ``tokens`` behind a prompt are drawn from, ``[L, V]``: a row alone, as it is written."""
    row = torch.cat([torch.tensor(prompt), torch.as_tensor(tokens)]).to(model.device)
    logits: Tensor = model(input_ids=row[None, :-1], use_cache=False).logits
    return logits[0, len(prompt) - 1 :]


def logp_alone(model: CausalModel, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """The log-probability of each of these tokens behind a prompt at temperature 1, nats, ``[L]``, likewise."""
    logp = logits_alone(model, prompt, tokens).float().log_softmax(-1)
    return logp.gather(1, torch.tensor(tokens, device=logp.device)[:, None])[:, 0].cpu()


def made_up_rows(model: CausalModel, limit: int | None = None) -> tuple[list[Completion], Pack, Pack]:
    """Completions of unequal lengths, two of one prompt and one of another: in three rows, and in two."""
    config = model.config.get_text_config()
    size, longest = config.vocab_size, made_up_length(config)
    if limit is not None:
        longest = min(longest, max(limit, 12))
    prompts = [[(7 * i + 3) % size for i in range(6)], [(5 * i + 2) % size for i in range(longest - 3)]]
    items = [
        Completion(
            k, prompts[k // 2], torch.tensor([(11 * i + 5 * k + 1) % size for i in range(count)]), k // 2
        )
        for k, count in enumerate((5, 2, 4))
    ]
    apart, shared = (
        pack(make_groups(items, shared=shared, budget=64), shared=shared) for shared in (False, True)
    )
    return items, apart, shared
