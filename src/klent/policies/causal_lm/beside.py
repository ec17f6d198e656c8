"""Numbers beside the action's log-probability: its logit, a dummy action's, and the mean over the vocabulary."""

import torch
from torch import Tensor, nn

from klent.errors import ModelError
from klent.head.products import use_onednn_linears
from klent.head.stats import Head, accumulation_dtype
from klent.policies.causal_lm.model import CausalModel

BESIDE = ("logit", "logp_dummy", "logp_mean")
"""The streams that :func:`beside` gives."""


HOLDS_VALUES = "klent_values"
"""Key of a model's ``config.json``, true where its head holds values of actions: what it says is no policy."""


def holds_values(model: CausalModel) -> bool:
    """Whether a model's head was trained to hold values; it says so in its ``config.json``."""
    return bool(getattr(model.config, HOLDS_VALUES, False))


def add_dummy_action(model: CausalModel) -> None:
    """Give a model's vocabulary one more row, of zeros: an action that no text has, the last of the head.

    Raises:
        ModelError: the head is not a row for each token.
    """
    before = model.get_output_embeddings()
    resize = getattr(model, "resize_token_embeddings", None)
    if before is None or resize is None or hasattr(model, "peft_config"):
        raise ModelError(
            "the dummy action needs one more row in the head, and this model's head cannot be extended. Use another "
            "model, without lora"
        )
    rows = len(before.weight)
    with torch.random.fork_rng(devices=[]):
        resize(rows + 1, mean_resizing=False)
    after = model.get_output_embeddings()
    assert after is not None
    inputs = model.get_input_embeddings()
    assert inputs is not None
    with torch.no_grad():
        for weight in (after.weight, inputs.weight):
            weight[rows:].zero_()  # type: ignore[index]
    use_onednn_linears(model)  # type: ignore[arg-type]


def start_logits_at_zero(model: CausalModel) -> None:
    """Give a model a head of its own, of zeros: no action is worth anything until something was learnt.

    Raises:
        ModelError: the head is no matrix of a row for each token.
    """
    before = model.get_output_embeddings()
    replace = getattr(model, "set_output_embeddings", None)
    if before is None or replace is None or hasattr(model, "peft_config"):
        raise ModelError(
            "values need a head of their own, and this model's head cannot be replaced. Use another model, without "
            "lora"
        )
    rows, width = before.weight.shape
    weight = before.weight
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(width, rows, bias=False, dtype=weight.dtype, device=weight.device)
    nn.init.zeros_(head.weight)
    replace(head)
    model.config.tie_word_embeddings = False  # type: ignore[attr-defined]
    use_onednn_linears(model)  # type: ignore[arg-type]


def beside(name: str, head: Head, action: Tensor, logp: Tensor) -> Tensor:
    """``logit``, the action's; ``logp_dummy``, that of the last row's action; or ``logp_mean``, the mean over all.

    The last two follow from the action's own, as normalisers cancel: ``log p(b) = log p(a) + z_b - z_a``. The mean
    of the logits is one product with the mean of the rows.

    Args:
        name: of the stream.
        head: hidden states ``[N, H]`` and head.
        action: ``[N]``.
        logp: of the actions under this head, ``[N]``.

    Raises:
        ModelError: ``logp_mean`` of a head that caps its logits, whose mean is not a product.
    """
    dtype = accumulation_dtype(head.hidden, head.weight)
    hidden = head.hidden.to(dtype)
    # index_select, because the backward of indexing adds equal rows in whatever order threads arrive
    own = (hidden * head.weight.index_select(0, action).to(dtype)).sum(-1)
    if head.bias is not None:
        own = own + head.bias.index_select(0, action)
    if name == "logit":
        return _logit(own, head)
    if name == "logp_dummy":
        row, bias = head.weight[-1], None if head.bias is None else head.bias[-1]
    else:
        if head.transform.softcap is not None:
            raise ModelError(
                "logp_mean: cannot be computed because the model caps its logits; use weighted_cross_entropy, which "
                "has a dummy action"
            )
        row, bias = head.weight.to(dtype).mean(0), None if head.bias is None else head.bias.mean()
    theirs = hidden @ row.to(dtype)
    theirs = theirs if bias is None else theirs + bias
    return logp + _logit(theirs, head) - _logit(own, head)


def _logit(product: Tensor, head: Head) -> Tensor:
    temperature, scale, softcap = head.transform
    raw = product * scale
    return (raw if softcap is None else torch.tanh(raw / softcap) * softcap) / temperature
