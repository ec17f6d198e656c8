"""The policy as the trainer sees it: packed rows in, per-token log-probability and entropy out."""

from typing import Any

import torch
from torch import Tensor, nn

from klent.head import TokenStats, token_stats
from klent.head.divergence import Head
from klent.head.reference import full_logit_stats
from klent.head.stats import LogitTransform
from klent.policies.causal_lm.attention import attending
from klent.policies.causal_lm.blocks import block_attention, find_blocks
from klent.policies.causal_lm.packing import Pack
from klent.policies.causal_lm.probe import body_of, head_options


class Policy(nn.Module):
    """A causal language model whose last product is taken by the fused head.

    The model's body gives hidden states, only those that predict a completion token are kept, and
    :func:`klent.token_stats` turns them into numbers without ever holding their logits. A model that does
    more to its logits than one matrix product, a scale and a soft cap is found out by :func:`head_options`
    and then goes through its own head: slower, equally exact.

    Args:
        model: a transformers causal language model, or a peft model around one.
        temperature: the sampling temperature; log-probabilities and entropies are those of the sampled
            distribution.
    """

    def __init__(self, model: Any, *, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        options = head_options(model)
        self.fused = options is not None
        self.head_options = options or {}
        self.takes_blocks = False

    def forward(self, rows: Pack, *, entropy: bool = True) -> TokenStats:
        """Statistics of the ``N`` completion tokens of ``rows``, in their order; float32, ``[N]``."""
        return self.stats(self.states(rows), rows, entropy=entropy)

    def states(self, rows: Pack) -> Tensor:
        """What predicts each of the ``N`` tokens: last hidden states; logits where the head is not fused."""
        if rows.shared and self.takes_blocks and not getattr(self.model, "is_gradient_checkpointing", False):
            # Not with checkpointing: it runs the model again in the backward pass, when this is over.
            blocks = find_blocks(rows.owner).to(self.model.device, self.model.dtype)
            with attending(self.model, block_attention, blocks) as attention:
                return self._chosen(rows, **attention)
        return self._chosen(rows, attention_mask=_for_model(rows.attention_mask(), self.model))

    def _chosen(self, rows: Pack, **attention: Any) -> Tensor:
        device = self.model.device
        inputs = {
            "input_ids": rows.input_ids.to(device),
            "position_ids": rows.position_ids.to(device),
            "use_cache": False,
        } | attention
        output = (
            body_of(self.model)(**inputs).last_hidden_state if self.fused else self.model(**inputs).logits
        )
        # index_select and not indexing: a prompt's last state is chosen once a completion, and the backward
        # of indexing adds repeated rows in whatever order the threads arrive.
        chosen: Tensor = output.flatten(0, 1).index_select(0, rows.source.to(device))
        return chosen

    def head(self, states: Tensor) -> Head:
        """These hidden states with what turns them into distributions; only of a fused head."""
        head = self.model.get_output_embeddings()
        scale, softcap = self.head_options.get("scale", 1.0), self.head_options.get("softcap")
        return Head(
            states, head.weight, getattr(head, "bias", None), LogitTransform(self.temperature, scale, softcap)
        )

    def stats(self, states: Tensor, rows: Pack, *, entropy: bool = True) -> TokenStats:
        """The numbers of :meth:`forward` from its :meth:`states`."""
        target = rows.target.to(states.device)
        if self.fused:
            head = self.head(states)
            return token_stats(
                states, head.weight, target, bias=head.bias, entropy=entropy, **head.transform._asdict()
            )
        return full_logit_stats(states.float(), target, self.temperature, entropy=entropy)


def _for_model(mask: Tensor, model: Any) -> Tensor:
    mask = mask.to(model.device)
    if not mask.is_floating_point() or model.dtype == mask.dtype:
        return mask
    return mask.clamp_min(torch.finfo(model.dtype).min).to(model.dtype)
