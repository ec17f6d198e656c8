"""Weights sharded over two real ranks (FSDP2): numbers, gradients and weights are those of one process."""

import socket

import pytest
import torch
from processes import call, finish
from sharding import CASES, alone, on_rank, read

from klent.training.shards import cut_like, own_part, whole

TOLERANCE = {"float32": 1e-5, "masters": 0.05}  # the others are float64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every case is run by one pair of processes."""
    folder = tmp_path_factory.mktemp("shards")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [call(on_rank, rank, 2, port, folder) for rank in range(2)]
    assert [finish(process) for process in both] == [0, 0]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_with_half_of_each_weight_are_one_process(folder, case):
    expected, wanted = alone(case)
    tolerance = TOLERANCE.get(case, 1e-12)
    for rank in range(2):
        tensors, numbers = read(folder, case, rank)
        assert tensors.keys() == expected.keys()
        for name, value in expected.items():
            assert tensors[name].dtype == value.dtype, name
            near = max(tolerance, 1e-6) if value.dtype == torch.float32 else tolerance
            torch.testing.assert_close(
                tensors[name], value, atol=near, rtol=near, msg=lambda m, n=name: f"{n}: {m}"
            )
        assert numbers["norm"] == pytest.approx(wanted["norm"], rel=tolerance)
        assert numbers["loss"] == pytest.approx(wanted["loss"], rel=tolerance, abs=tolerance)
        assert numbers["targets"] == wanted["targets"] > 0
        for name, pair in wanted["sums"].items():
            assert numbers["sums"][name] == pytest.approx(pair, rel=10 * tolerance, abs=tolerance)
    assert min(wanted["norm"]) > 0.06  # it was clipped
    start = alone_at_start(case)
    moved = max(float((expected[f"written.{n}"] - value).abs().max()) for n, value in start.items())
    assert moved > 5e-3


def alone_at_start(case):
    from sharding import model_of

    return dict(model_of(case).state_dict())


def test_each_rank_holds_half(folder):
    for case in CASES:
        _, whole_run = alone(case)
        held = [read(folder, case, rank)[1]["held"] for rank in range(2)]
        assert sum(held) == whole_run["held"]
        assert max(held) < 0.51 * whole_run["held"]


def test_what_is_whole_passes_as_it_is():
    weight = torch.arange(6.0).view(3, 2)
    assert whole(weight) is weight
    assert cut_like(weight, torch.zeros(3, 2)) is weight
    values, first = own_part(weight)
    assert values.tolist() == [0, 1, 2, 3, 4, 5]
    assert first == 0
