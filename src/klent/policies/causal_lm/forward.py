"""One forward pass over packed rows: what stands before each action."""

import torch
from torch import Tensor

from klent.policies.causal_lm.attention import attending
from klent.policies.causal_lm.blocks import block_attention, find_blocks
from klent.policies.causal_lm.model import CausalModel, body_of, recomputes
from klent.policies.causal_lm.packing import Pack


def predicting_states(model: CausalModel, rows: Pack, *, blocks: bool, logits: bool = False) -> Tensor:
    """The last hidden state that predicts each of the ``N`` actions, ``[N, H]``.

    Args:
        model: whose layers run.
        rows: as packed.
        blocks: whether its attention may be computed block by block where rows share a prompt.
        logits: go through the model's own head too, ``[N, V]``.
    """
    if rows.shared and blocks and not recomputes(model):
        # Not with checkpointing: it runs the model again in the backward pass, when this is over.
        cut = find_blocks(rows.owner, rows.segment).to(model.device, model.dtype)
        with attending(model, block_attention, cut) as attention:
            return _pass(model, rows, logits, **attention)
    return _pass(model, rows, logits, attention_mask=_for_model(rows.attention_mask(), model))


def _pass(model: CausalModel, rows: Pack, logits: bool, **attention: object) -> Tensor:
    device = model.device
    inputs: dict[str, object] = {
        "input_ids": rows.input_ids.to(device),
        "position_ids": rows.position_ids.to(device),
        "use_cache": False,
        **attention,
    }
    output = model(**inputs).logits if logits else body_of(model)(**inputs).last_hidden_state
    # index_select and not indexing: a prompt's last state predicts the first token of each completion,
    # and the backward of indexing adds repeated rows in whatever order the threads arrive.
    return output.flatten(0, 1).index_select(0, rows.source.to(device))


def _for_model(mask: Tensor, model: CausalModel) -> Tensor:
    mask = mask.to(model.device)
    if not mask.is_floating_point() or model.dtype == mask.dtype:
        return mask
    lowest = max(torch.finfo(mask.dtype).min, torch.finfo(model.dtype).min)
    return mask.clamp_min(lowest).to(model.dtype)
