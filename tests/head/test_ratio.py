"""The largest ratio of two heads' probabilities, tile by tile, against plain torch that holds all logits."""

import math

import pytest
import torch
from torch import Tensor

from klent.head import chunked, ratio
from klent.head.ratio import largest_log_ratio
from klent.head.stats import Head, LogitTransform


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chunked, ratio):
        monkeypatch.setattr(module, "TILE_ROWS", 3)
        monkeypatch.setattr(module, "TILE_COLUMNS", 4)


def head(width: int, tokens: int, transform: LogitTransform, seed: int, *, bias: bool = False) -> Head:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return Head(draw(7, width) * 2, draw(tokens, width), draw(tokens) if bias else None, transform)


def log_probs(head: Head) -> Tensor:
    raw = head.hidden @ head.weight.T + (0.0 if head.bias is None else head.bias)
    raw = raw * head.transform.scale
    if head.transform.softcap is not None:
        raw = head.transform.softcap * torch.tanh(raw / head.transform.softcap)
    return (raw / head.transform.temperature).log_softmax(-1)


@pytest.mark.parametrize("floor", [-math.inf, math.log(0.03), math.log(0.2)])
@pytest.mark.parametrize(
    "transform", [LogitTransform(), LogitTransform(0.7, 1.3), LogitTransform(1.4, 1.0, 2.0)]
)
def test_it_is_the_largest_ratio_among_what_the_other_supports(floor, transform):
    """The first head has two tokens more, as one with a dummy action: they count in its normaliser alone."""
    one, other = head(6, 13, transform, 0), head(4, 11, LogitTransform(0.9), 1, bias=True)
    log_p, log_q = log_probs(one)[:, :11], log_probs(other)
    expected = (log_p - log_q).masked_fill(log_q < floor, -math.inf).amax(-1)
    torch.testing.assert_close(largest_log_ratio(one, other, floor=floor), expected)
    assert not expected.isneginf().all()


def test_a_token_that_the_other_never_says_does_not_count():
    other = head(4, 11, LogitTransform(), 1, bias=True)
    assert other.bias is not None
    other.bias[5] = -math.inf
    one = head(6, 11, LogitTransform(), 0)
    expected = (log_probs(one) - log_probs(other)).masked_fill(torch.arange(11) == 5, -math.inf).amax(-1)
    torch.testing.assert_close(largest_log_ratio(one, other), expected)


def test_no_supported_action_is_minus_infinity_and_rows_must_agree():
    one, other = head(6, 11, LogitTransform(), 0), head(6, 11, LogitTransform(), 1)
    assert largest_log_ratio(one, other, floor=0.0).isneginf().all()
    with pytest.raises(ValueError, match="7 rows of one model and 3 of the other"):
        largest_log_ratio(one, other._replace(hidden=other.hidden[:3]))
