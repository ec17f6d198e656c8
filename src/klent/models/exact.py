"""What a model computes is asked of the model: which attention is exact, and whether training draws noise.

A configuration says little of either. SDPA drops arguments that it does not know, such as a cap on the scores,
without a word, and noise hides under any name; both show in the arguments of the call and in the numbers.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

from klent.errors import ModelError, first_line

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

KERNELS = {"flash": "flash_attention_2", "flex": "flex_attention"}  # a recipe's name -> that of transformers
ATTENTIONS = ("auto", "sdpa", "eager", *KERNELS)
LONGEST = (
    96  # tokens of a made-up row: a window or chunk that is shorter is crossed, a longer one costs too much
)


def refuse_attention(attention: str) -> None:
    """Refuse an ``attention`` that is no name of one.

    Raises:
        ModelError: with the names.
    """
    if attention not in ATTENTIONS:
        raise ModelError(f"attention {attention!r} is not one of {', '.join(ATTENTIONS)}")


def close(expected: "Tensor", actual: "Tensor", dtype: "torch.dtype", *, rounding: float = 2e-2) -> bool:
    """Whether two computations of the same numbers agree up to the rounding of ``dtype``.

    Args:
        expected: the numbers as they should be.
        actual: the same numbers another way.
        dtype: of the model that computed both.
        rounding: largest difference for bfloat16 and float16, as a fraction of the largest number (or of 1,
            if that is more). 1e-4 for float32 and float64: a wrong mask or head is off by orders more.

    Returns:
        False also where a number is not finite.
    """
    import torch

    if expected.shape != actual.shape or not (expected.isfinite().all() and actual.isfinite().all()):
        return False
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else rounding
    return bool((expected - actual).abs().max() <= tolerance * expected.abs().max().clamp_min(1.0))


def made_up_length(config: object) -> int:
    """Tokens that cross every window and chunk of a configuration, where that is cheap; at least 12."""
    values: dict[str, object] = vars(config)
    lengths = [
        value
        for key, value in values.items()
        if ("window" in key or "chunk" in key) and isinstance(value, int) and 8 < value + 4 <= LONGEST
    ]
    return max([8, *lengths]) + 4


def choose_attention(model: "PreTrainedModel", wanted: str) -> str:
    """Give the model the attention that is exact: SDPA where it gives the numbers of an eager pass.

    Args:
        model: loaded with SDPA, or with eager attention where it has no other.
        wanted: ``auto``, ``sdpa``, ``eager``, ``flash`` or ``flex``.

    Returns:
        ``sdpa``, ``eager``, ``flash`` or ``flex``, which the model has from now on.

    Raises:
        ModelError: ``wanted`` does not give the numbers of an eager pass, or cannot run here.
    """
    if wanted in KERNELS:
        _take_kernel(model, wanted)
        return wanted
    if model.config._attn_implementation != "sdpa":
        return "eager"
    extra = _difference(model, "sdpa")
    if extra is None:
        return "sdpa"
    if wanted == "sdpa":
        raise ModelError(
            f"attention: sdpa does not compute this model's attention ({extra}), so log-probabilities would be "
            "wrong. Use attention: auto or eager"
        )
    _set_attention(model, "eager")
    return "eager"


def _take_kernel(model: "PreTrainedModel", wanted: str) -> None:
    """Give the model a kernel that was asked for, once it has given an eager pass's numbers, and a gradient."""
    import torch

    name = KERNELS[wanted]
    trained = [weight for weight in model.parameters() if weight.requires_grad][
        :1
    ]  # an adapter's, where there is one
    try:
        model.set_attn_implementation(name)
        _set_attention(model, name)
        with torch.enable_grad():
            logits = _logits(model, grad=True)
            if trained:
                torch.autograd.grad(logits.sum(), trained, allow_unused=True)
    except (ImportError, ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        raise ModelError(
            f"attention: {wanted} cannot train this model here ({first_line(error)}). Use attention: auto"
        ) from error
    if extra := _difference(model, name):
        raise ModelError(
            f"attention: {wanted} does not compute this model's attention ({extra}), so log-probabilities would be "
            "wrong. Use attention: auto or eager"
        )


def _difference(model: "PreTrainedModel", name: str) -> str | None:
    """Why an attention is not that of an eager pass; None where it is. The model has it from now on."""
    extra = _dropped(model, name)
    if extra is None:
        expected = _with_attention(model, "eager", name, lambda: _logits(model))
        if not close(expected, _logits(model), model.dtype):
            extra = "the numbers differ"
    return extra


def _dropped(model: "PreTrainedModel", name: str) -> str | None:
    """What the model gives its eager attention and another one would drop without a word; None without any."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    forward: Callable[..., object] = AttentionInterface()[name]
    understood = set(inspect.signature(forward).parameters)
    dropped: set[str] = set()

    def witness(module: object, *tensors: object, **arguments: object) -> object:
        eager: object = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if callable(eager):
            used = set(inspect.signature(eager).parameters) - understood
            dropped.update(name for name in used if arguments.get(name) is not None)
        return sdpa_attention_forward(module, *tensors, **arguments)  # type: ignore[arg-type]

    AttentionInterface.register("klent_witness", witness)
    try:
        _with_attention(model, "klent_witness", name, lambda: _logits(model))
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError):
        return None  # attention that is not called by name: the numbers decide
    return f"it also has {', '.join(sorted(dropped))}" if dropped else None


def _with_attention(
    model: "PreTrainedModel", name: str, usual: str, call: "Callable[[], Tensor]"
) -> "Tensor":
    _set_attention(model, name)
    try:
        return call()
    finally:
        _set_attention(model, usual)


def _set_attention(model: "PreTrainedModel", name: str) -> None:
    """In every configuration that the model's layers read."""
    for config in {
        id(part.config): part.config for part in model.modules() if hasattr(part, "config")
    }.values():
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = name


def _logits(model: "PreTrainedModel", *, grad: bool = False) -> "Tensor":
    """Of one made-up row; no cache."""
    import torch

    config = model.config.get_text_config()
    count = made_up_length(config)
    ids = torch.tensor([[(7 * i + 3) % config.vocab_size for i in range(count)]], device=model.device)
    with torch.set_grad_enabled(grad):
        return cast("Tensor", model(input_ids=ids, use_cache=False).logits).float()


def refuse_noise(model: "PreTrainedModel", name: str) -> None:
    """Refuse a model whose numbers in ``train()`` mode are not those in ``eval()`` mode, every time.

    An adapter's dropout is left out: it is asked for.

    Raises:
        ModelError: the model draws random numbers that no setting switches off.
    """
    import torch

    with _without_adapter(model), _random_state(model.device):
        model.eval()
        quiet = _logits(model)
        model.train()
        try:
            noisy = [_logits(model) for _ in range(2)]
        finally:
            model.eval()
    if quiet.isnan().any():
        raise ModelError(
            f"{name} gives numbers that are not finite (NaN): the model has diverged, or its files are damaged. "
            "Take an earlier checkpoint, or copy it again"
        )
    if all(close(quiet, numbers, model.dtype) for numbers in noisy):
        return
    kind = "draws random numbers" if not torch.equal(noisy[0], noisy[1]) else "computes something else"
    raise ModelError(
        f"{name} {kind} in training mode, so its log-probabilities differ from the sampler's and ratios would be "
        "noise. Switch it off in the model's config.json, or use another model"
    )


def _without_adapter(model: "PreTrainedModel") -> "AbstractContextManager[object]":
    disable: Callable[[], AbstractContextManager[object]] | None = getattr(model, "disable_adapter", None)
    return disable() if hasattr(model, "peft_config") and disable is not None else nullcontext()


@contextmanager
def _random_state(device: "torch.device") -> Iterator[None]:
    """Within this block random numbers may be drawn; afterwards the global state is as it was."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
