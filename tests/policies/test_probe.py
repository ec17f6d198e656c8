"""The comparison behind every question asked of a model, and what attention kernels refuse."""

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from klent.errors import ModelError
from klent.policies.causal_lm.attention import AttentionKernel, attending
from klent.policies.causal_lm.blocks import block_attention
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import agrees, evaluating, head_options
from klent.rollout.decoding import group_attention

NUMBERS = torch.tensor([1.0, -200.0])


def refuses() -> Tensor:
    raise KeyError("layout")


@pytest.mark.parametrize(
    ("other", "answer"),
    [
        (NUMBERS, True),
        (NUMBERS + 0.015, True),  # 1e-4 of the largest number
        (NUMBERS + 0.025, False),
        (NUMBERS[:1], False),
        (torch.tensor([1.0, torch.nan]), False),
        (torch.tensor([1.0, -torch.inf]), False),
    ],
    ids=["equal", "rounding", "beyond rounding", "shape", "nan", "infinite"],
)
def test_numbers_agree_up_to_rounding(other: Tensor, answer: bool) -> None:
    model = tiny_model()
    assert agrees(model, lambda: NUMBERS, lambda: other) is answer
    assert agrees(model, lambda: other, lambda: NUMBERS) is answer


def test_infinite_numbers_on_both_sides_are_no_agreement() -> None:
    infinite = torch.tensor([0.0, -torch.inf])
    assert not agrees(tiny_model(), lambda: infinite, lambda: infinite)


def test_narrow_numbers_may_differ_by_more() -> None:
    model = tiny_model().to(torch.bfloat16)
    assert agrees(model, lambda: NUMBERS, lambda: NUMBERS + 3.9)
    assert not agrees(model, lambda: NUMBERS, lambda: NUMBERS + 4.1)
    assert agrees(model, lambda: NUMBERS, lambda: NUMBERS + 5.9, rounding=3e-2)


@pytest.mark.parametrize("training", [True, False])
def test_a_way_that_raises_is_a_no_and_leaves_the_model_as_it_was(training: bool) -> None:
    model = tiny_model().train(training)
    seen = []

    def usual() -> Tensor:
        seen.append((model.training, torch.is_grad_enabled()))
        return NUMBERS

    assert not agrees(model, usual, refuses)
    assert seen == [(False, False)]
    assert model.training is training
    assert torch.is_grad_enabled()


def test_a_model_that_cannot_run_is_an_error_and_not_another_head() -> None:
    model = tiny_model()
    model.forward = lambda **inputs: refuses()
    with pytest.raises(KeyError):
        head_options(model)


def test_trained_weights_that_start_at_0_are_probed_as_if_trained() -> None:
    """A head's bias of 0 looks like none: asked with numbers in its place, which are 0 again afterwards."""
    model = tiny_model()
    bias = model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with evaluating(model):
        assert bias.any()
    assert not bias.any()
    bias.requires_grad_(False)
    with evaluating(model):
        assert not bias.any()


def test_a_row_that_depends_on_its_neighbours_is_refused() -> None:
    model = tiny_model()
    body = model.model.forward

    def mean_is_taken(**inputs):
        output = body(**inputs)
        states = output.last_hidden_state
        output.last_hidden_state = states - 0.1 * states.mean(dim=(0, 1), keepdim=True)
        return output

    model.model.forward = mean_is_taken
    with pytest.raises(ModelError, match="cannot be trained exactly"):
        CausalPolicy(model, temperature=1.0)


@pytest.mark.parametrize("kernel", [block_attention, group_attention], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(
    "extra",
    [{"dropout": 0.1}, {"softcap": 5.0}, {"s_aux": torch.zeros(2)}, {"mask": torch.zeros(1)}],
    ids=str,
)
def test_both_kernels_refuse_what_they_do_not_compute(kernel, extra) -> None:
    mask = extra.get("mask")
    options = {name: value for name, value in extra.items() if name != "mask"}
    with pytest.raises(ValueError, match=rf"{kernel.name} is scores and a softmax"):
        kernel(None, NUMBERS, NUMBERS, NUMBERS, mask, scaling=1.0, layout=None, **options)


def test_a_kernel_gets_its_layout_from_the_models_call_and_only_within_the_block() -> None:
    layouts = []

    def attend(layer, query, key, value, layout, scaling):
        layouts.append((layer.layer_idx, layout))
        return query.transpose(1, 2)

    kernel, model = AttentionKernel("klent_test", attend), tiny_model()
    ids = torch.arange(5, 9)[None]
    with torch.no_grad():
        usual = model(input_ids=ids).logits
        with attending(model, kernel, "as it lies") as attention:
            changed = model(input_ids=ids, use_cache=False, **attention).logits
        again = model(input_ids=ids).logits
    assert layouts == [(i, "as it lies") for i in range(len(layouts))]
    assert len(layouts) == model.config.num_hidden_layers
    assert not torch.equal(changed, usual)
    assert torch.equal(again, usual)
