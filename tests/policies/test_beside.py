"""Log-probabilities beside the action's: of the dummy action, and the mean over the vocabulary."""

import pytest
import torch
from tiny import VOCABULARY, tiny_model

from klent.errors import ModelError
from klent.head import token_stats
from klent.head.stats import Head, LogitTransform
from klent.policies.causal_lm.beside import add_dummy_action, beside


def draw(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(size)))


@pytest.mark.parametrize("name", ["logp_dummy", "logp_mean"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "transform", [LogitTransform(), LogitTransform(0.7, 1.3), LogitTransform(1.4, 1.0, 2.0)]
)
def test_values_and_gradients_are_those_of_full_logits(name, bias, transform):
    leaves = [draw(5, 4).requires_grad_(), draw(9, 4).requires_grad_()]
    leaves += [draw(9).requires_grad_()] if bias else []
    head = Head(leaves[0], leaves[1], leaves[2] if bias else None, transform)
    action = torch.tensor([0, 3, 8, 3, 1])
    if name == "logp_mean" and transform.softcap is not None:
        with pytest.raises(ModelError, match="caps its logits"):
            beside(name, head, action, draw(5))
        return
    logp = token_stats(head.hidden, head.weight, action, bias=head.bias, **transform._asdict()).logp
    raw = (head.hidden @ head.weight.T + (0.0 if head.bias is None else head.bias)) * transform.scale
    if transform.softcap is not None:
        raw = transform.softcap * torch.tanh(raw / transform.softcap)
    full = (raw / transform.temperature).log_softmax(-1)
    expected = full[:, -1] if name == "logp_dummy" else full.mean(-1)
    got = beside(name, head, action, logp)
    torch.testing.assert_close(got, expected)
    upstream = draw(5)
    for one, other in zip(
        torch.autograd.grad(got, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_dummy_action_is_one_more_row_and_changes_no_ratio_of_the_others():
    model = tiny_model()
    ids = torch.tensor([[7, 8, 9]])
    before = model(input_ids=ids).logits
    state = torch.get_rng_state()
    add_dummy_action(model)
    assert torch.equal(torch.get_rng_state(), state)
    after = model(input_ids=ids).logits
    assert after.shape[-1] == len(VOCABULARY) + 1
    torch.testing.assert_close(after[..., :-1], before)
    assert (after[..., -1] == 0).all()
