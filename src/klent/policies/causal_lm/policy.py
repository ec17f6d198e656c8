"""The policy as the trainer sees it: packed rows in, per-token log-probability and entropy out."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from klent.head import TokenStats, token_stats
from klent.head.divergence import Head
from klent.head.stats import Shape
from klent.policies.causal_lm.attention import attending
from klent.policies.causal_lm.blocks import NAME as BLOCKS
from klent.policies.causal_lm.blocks import find_blocks
from klent.policies.causal_lm.packing import (
    Completion,
    Group,
    Pack,
    Packing,
    completions,
    make_groups,
    make_microbatches,
    pack,
    row_length,
)
from klent.policies.causal_lm.teacher import Teacher
from klent.streams.batch import Batch, Stats

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CausalPolicy(nn.Module):
    """A causal language model whose last product is taken by the fused head; a :class:`klent.policies.Policy`.

    The model's body gives hidden states, only those that predict an action are kept, and
    :func:`klent.token_stats` turns them into numbers without ever holding their logits. A model that does
    more to its logits than one matrix product, a scale and a soft cap is found out by :func:`head_options`
    and then goes through its own head: slower, equally exact.

    Args:
        model: a transformers causal language model, or a peft model around one.
        temperature: the sampling temperature; log-probabilities and entropies are those of the sampled
            distribution.
        packing: how rows are laid out; the model decides what it allows, see :func:`takes_shared_prompt`.
        active: a context in which the model stands for this policy, such as one that switches adapters off.
        teacher: gives the divergence from a target.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        temperature: float,
        packing: Packing | None = None,
        active: Callable[[], AbstractContextManager[object]] = nullcontext,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.packing = packing or Packing()
        self.active = active
        self.teacher = teacher
        options = head_options(model)
        self.fused = options is not None
        self.head_options = options or {}
        self.takes_blocks = False

    def trainable(self) -> dict[str, nn.Parameter]:
        """The model's parameters that receive gradients, by the model's own names."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def microbatches(self, batch: Batch, rows: Sequence[int]) -> list[list[int]]:
        """Rows of similar length together, within the packing's budget; see :class:`klent.policies.Policy`."""
        cut = make_microbatches(self._groups(batch, rows), budget=self.packing.budget)
        return [sorted(item.index for group in groups for item in group) for groups in cut]

    def evaluate(self, batch: Batch, rows: Sequence[int], *, divergence: bool = False) -> Stats:
        """Pack, compute, and lay the numbers out on the grid; see :class:`klent.policies.Policy`."""
        groups = sorted(self._groups(batch, rows), key=row_length, reverse=True)
        packed = pack(groups, shared=self.packing.shared)
        with self.active():
            states = self.states(packed)
            numbers = self.stats(states, packed)
        assert numbers.entropy is not None
        place = torch.empty(len(batch), dtype=torch.long)
        place[list(rows)] = torch.arange(len(rows))
        device = numbers.logp.device
        where = (place[packed.row].to(device), packed.column.to(device))

        def on_grid(values: Tensor) -> Tensor:
            return torch.zeros(len(rows), batch.mask.shape[1], device=device).index_put(where, values)

        apart = None
        if divergence and self.teacher is not None:
            apart = on_grid(self.teacher.divergence(self.head(states), batch, groups))
        return Stats(
            on_grid(numbers.logp),
            on_grid(numbers.entropy),
            divergence=apart,
            tokens=packed.tokens,
            targets=len(packed.target),
        )

    def _groups(self, batch: Batch, rows: Sequence[int]) -> list[Group]:
        return make_groups(completions(batch, rows), shared=self.packing.shared, budget=self.packing.budget)

    def forward(self, rows: Pack, *, entropy: bool = True) -> TokenStats:
        """Statistics of the ``N`` actions of packed rows, in their order; float32, ``[N]``."""
        return self.stats(self.states(rows), rows, entropy=entropy)

    def states(self, rows: Pack) -> Tensor:
        """What predicts each of the ``N`` actions: last hidden states; logits where the head is not fused."""
        if rows.shared and self.takes_blocks and not getattr(self.model, "is_gradient_checkpointing", False):
            # Not with checkpointing: it runs the model again in the backward pass, when this is over.
            blocks = find_blocks(rows.owner).to(self.model.device, self.model.dtype)
            with attending(self.model, BLOCKS):
                return self._chosen(rows, blocks=blocks)
        return self._chosen(rows, attention_mask=_for_model(rows.attention_mask(), self.model))

    def _chosen(self, rows: Pack, **attention: object) -> Tensor:
        device = self.model.device
        inputs = {
            "input_ids": rows.input_ids.to(device),
            "position_ids": rows.position_ids.to(device),
            "use_cache": False,
        } | attention
        output = _body(self.model)(**inputs).last_hidden_state if self.fused else self.model(**inputs).logits
        # index_select and not indexing: a prompt's last state is chosen once per completion, and the backward
        # of indexing adds repeated rows in whatever order the threads arrive.
        chosen: Tensor = output.flatten(0, 1).index_select(0, rows.source.to(device))
        return chosen

    def head(self, states: Tensor) -> Head:
        """These hidden states with what turns them into distributions; only of a fused head."""
        head = self.model.get_output_embeddings()
        scale, softcap = self.head_options.get("scale", 1.0), self.head_options.get("softcap")
        return Head(states, head.weight, getattr(head, "bias", None), Shape(self.temperature, scale, softcap))

    def stats(self, states: Tensor, rows: Pack, *, entropy: bool = True) -> TokenStats:
        """The numbers of :meth:`forward` from its :meth:`states`."""
        target = rows.target.to(states.device)
        if self.fused:
            head = self.head(states)
            return token_stats(
                states, head.weight, target, bias=head.bias, entropy=entropy, **head.shape._asdict()
            )
        return _own_head_stats(states, target, self.temperature, entropy=entropy)


def _own_head_stats(logits: Tensor, target: Tensor, temperature: float, *, entropy: bool) -> TokenStats:
    """Of logits that the model's own head gave; a token of logit -inf adds nothing to the entropy."""
    logp = (logits.float() / temperature).log_softmax(dim=-1)
    sampled = logp.gather(1, target[:, None])[:, 0]
    if not entropy:
        return TokenStats(sampled, None)
    finite = logp.masked_fill(logp == float("-inf"), 0.0)
    return TokenStats(sampled, -(logp.exp() * finite).sum(dim=-1))


def _for_model(mask: Tensor, model: Any) -> Tensor:
    mask = mask.to(model.device)
    if not mask.is_floating_point() or model.dtype == mask.dtype:
        return mask
    return mask.clamp_min(torch.finfo(model.dtype).min).to(model.dtype)


def _body(model: Any) -> Any:
    """The model without its head; peft's layers live inside it, so its own wrapper is not needed."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model


@torch.no_grad()
def head_options(model: Any) -> dict[str, float] | None:
    """The ``scale`` and ``softcap`` with which :func:`klent.token_stats` is this head; None if it is not.

    The numbers are those of the model's configuration. Whether the model uses them so is asked of the model
    itself, on a few tokens: configurations also carry numbers that nobody reads.
    """
    config = model.config.get_text_config()
    ids = torch.arange(1, 5, device=model.device)[None] % config.vocab_size
    was_training = model.training
    model.eval()
    try:
        logits = model(input_ids=ids, use_cache=False).logits.float()
        hidden = _body(model)(input_ids=ids, use_cache=False).last_hidden_state
        head = model.get_output_embeddings()
        if head is None or hidden.shape[-1] != head.weight.shape[-1]:
            return None
        own = torch.nn.functional.linear(hidden, head.weight, getattr(head, "bias", None)).float()
    finally:
        model.train(was_training)
    if own.shape != logits.shape:
        return None
    named = _named_options(config)
    # The named ones first: small logits look the same with and without a cap, and grow in training.
    for options in (named, {}):
        if _close(_cap(own * options.get("scale", 1.0), options.get("softcap")), logits, model.dtype):
            return options
    return None


def head_is_linear(model: Any) -> bool:
    """Whether the logits are the last hidden state times the output embedding and nothing else."""
    return head_options(model) == {}


def _named_options(config: Any) -> dict[str, float]:
    """What a configuration says of the logits, under the names that transformers' models give it."""

    def number(name: str) -> float:
        value = getattr(config, name, None)
        return float(value) if isinstance(value, int | float) and value else 1.0

    scale = number("logit_scale") * number("lm_head_multiplier") / number("logits_scaling")
    softcap = getattr(config, "final_logit_softcapping", None)
    return ({} if scale == 1.0 else {"scale": scale}) | ({"softcap": float(softcap)} if softcap else {})


def _cap(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@torch.no_grad()
def takes_shared_prompt(policy: CausalPolicy, *, longest: int) -> bool:
    """Whether packing a group behind one prompt gives the log-probabilities of rows apart.

    Asked of the model itself on two made-up completions: recurrent layers, sliding windows shorter than the
    sequence and attention kernels that ignore a mask all answer no, without a list of names to keep. A model
    that answers yes is asked whether its attention can be taken apart too; ``policy.takes_blocks`` holds the
    answer.

    Args:
        policy: the policy to ask.
        longest: the longest prompt and completion expected, tokens, for models that look at a window only.
    """
    config = policy.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and longest > window:
        return False
    size = config.vocab_size
    prompt = [(7 * i + 3) % size for i in range(6)]
    pair = [
        Completion(k, prompt, torch.tensor([(11 * i + 5 * k + 1) % size for i in range(5)])) for k in range(2)
    ]
    was_training, policy.takes_blocks = policy.model.training, False
    policy.model.eval()
    rows = [pack(make_groups(pair, shared=shared, budget=64), shared=shared) for shared in (False, True)]
    try:
        apart, together = (policy(row).logp for row in rows)
        if not _close(apart, together, policy.model.dtype):
            return False
        policy.takes_blocks = _blocks_agree(policy, rows[1], apart)
    except (ValueError, RuntimeError, TypeError, IndexError):
        return False
    finally:
        policy.model.train(was_training)
    return True


def _blocks_agree(policy: CausalPolicy, rows: Pack, expected: Tensor) -> bool:
    """Whether attention taken apart (:mod:`klent.policies.causal_lm.blocks`) is the model's own."""
    policy.takes_blocks = True
    try:
        return _close(policy(rows).logp, expected, policy.model.dtype)
    except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError):
        return False


def _close(left: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    """Equal up to the rounding of the arithmetic in use; a wrong mask or head is off by orders more."""
    scale = right.abs().max().clamp_min(1.0)
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
    return bool(torch.isfinite(left).all() & ((left - right).abs().max() <= tolerance * scale))
