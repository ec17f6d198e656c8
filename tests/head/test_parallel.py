"""The head with its vocabulary divided over ranks, held against a softmax of all logits."""

import os
import socket

import pytest
import torch
from processes import call, finish
from torch import Tensor
from worlds import together

from klent.head.parallel import DividedVocabulary
from klent.kit.world import OneProcess
from klent.training.ranks import joined

ROWS, WIDTH = 37, 6
WAYS = {
    "even": {"cuts": (530, 530)},
    "uneven": {"cuts": (3, 700, 41)},  # more than one tile, and less
    "one has none": {"cuts": (50, 0, 1)},
    "one": {"cuts": (60,)},
    "capped": {"cuts": (20, 33), "softcap": 2.0, "scale": 0.5, "temperature": 0.7},
    "kept": {"cuts": (600, 31), "keep_bytes": 1 << 20, "temperature": 1.3},
}


def inputs(cuts, seed=0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets on every rank that holds any, and coefficients of which some are 0."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(cuts)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    weight = 3 * torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
    target = torch.randint(size, (ROWS,), generator=generator)
    target[:3] = torch.tensor([0, size - 1, cuts[0] - 1])
    c, e = torch.randn(2, ROWS, generator=generator, dtype=torch.float64)
    c[::4], e[::4], e[1::4] = 0.0, 0.0, 0.0
    return hidden, weight, target, c, e


def wanted(cuts, *, softcap=None, scale=1.0, temperature=1.0, keep_bytes=0) -> dict[str, Tensor]:
    """By the definition, with every logit at hand."""
    hidden, weight, target, c, e = inputs(cuts)
    hidden.requires_grad_()
    weight.requires_grad_()
    logits = scale * hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = torch.log_softmax(logits / temperature, -1)
    p = logp.exp()
    chosen, entropy = logp.gather(1, target[:, None])[:, 0], -(p * logp).sum(1)
    (c * chosen + e * entropy).sum().backward()
    return {
        "logp": chosen.detach(),
        "entropy": entropy.detach(),
        "collision": (p * p).sum(1).detach(),
        "collision_logp": (p * p * logp).sum(1).detach(),
        "hidden": hidden.grad,
        "weight": weight.grad,
    }


def on_rank(world, cuts, **options) -> dict[str, Tensor]:
    hidden, weight, target, c, e = inputs(cuts)
    shard = weight.split(list(cuts))[world.rank].clone().requires_grad_()
    hidden.requires_grad_()
    vocabulary = DividedVocabulary(world, len(shard))
    assert vocabulary.size == sum(cuts)
    stats = vocabulary.token_stats(hidden, shard, target, collision=True, **options)
    (c * stats.logp + e * stats.entropy).sum().backward()
    return {
        "logp": stats.logp.detach(),
        "entropy": stats.entropy.detach(),
        "collision": stats.collision,
        "collision_logp": stats.collision_logp,
        "hidden": hidden.grad,
        "weight": shard.grad,
    }


def check(found: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    for name in ("logp", "entropy", "collision", "collision_logp", "hidden"):
        for rank in found:
            torch.testing.assert_close(rank[name], expected[name], rtol=1e-12, atol=1e-12)
            assert torch.equal(rank[name], found[0][name])  # the same on every rank, to the last bit
    torch.testing.assert_close(
        torch.cat([rank["weight"] for rank in found]), expected["weight"], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("way", WAYS)
def test_ranks_with_a_part_of_the_vocabulary_are_a_softmax_over_all(way):
    options = WAYS[way]
    cuts = options["cuts"]
    found = together(lambda seat: seat, lambda seat: on_rank(seat, **options), size=len(cuts))
    check(found, wanted(**options))


def real_rank(rank: int, size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined("auto") as world:
        torch.save(on_rank(world, **WAYS["uneven"]), f"{folder}/{rank}.pt")


def test_three_real_ranks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [call(real_rank, rank, 3, port, str(tmp_path)) for rank in range(3)]
    assert [finish(process) for process in started] == [0, 0, 0]
    check([torch.load(tmp_path / f"{rank}.pt") for rank in range(3)], wanted(**WAYS["uneven"]))


def test_logits_that_are_far_apart_do_not_overflow():
    """One rank holds nothing near the largest logit, another a logit of 2000."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[-3000.0], [-10.0], [2000.0], [2000.0]])

    def work(seat):
        shard = weight[2 * seat.rank : 2 * seat.rank + 2]
        return DividedVocabulary(seat, 2).token_stats(hidden, shard, torch.tensor([2]), collision=True)

    for stats in together(lambda seat: seat, work):
        assert stats.logp.exp().item() == pytest.approx(0.5)
        assert stats.entropy.item() == pytest.approx(0.6931472)
        assert stats.collision.item() == pytest.approx(0.5)
        assert stats.collision_logp.item() == pytest.approx(-0.3465736)


def test_shapes_are_those_of_the_targets():
    hidden, weight = torch.randn(2, 3, 4), torch.randn(5, 4)
    stats = DividedVocabulary(OneProcess(), 5).token_stats(
        hidden, weight, torch.zeros(2, 3, dtype=torch.long), entropy=False
    )
    assert stats.logp.shape == (2, 3)
    assert stats.entropy is None


def test_what_does_not_fit_is_refused():
    vocabulary = DividedVocabulary(OneProcess(), 5)
    hidden, target = torch.randn(2, 4), torch.tensor([0, 4])
    with pytest.raises(ValueError, match="the 5 rows that this rank holds, got 6"):
        vocabulary.token_stats(hidden, torch.randn(6, 4), target)
    with pytest.raises(ValueError, match=r"target holds 5, outside the vocabulary \[0, 5\)"):
        vocabulary.token_stats(hidden, torch.randn(5, 4), torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="temperature"):
        vocabulary.token_stats(hidden, torch.randn(5, 4), target, temperature=0.0)
