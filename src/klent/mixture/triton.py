"""The mixture of every row on a GPU: one program solves a row from its first sweep to its log-probabilities.

Nothing of ``[R, V]`` but log q is ever written, no number goes back to the host before the end, and a row
stops when it is solved. Rows are swept again and again from the caches, where those of the programs at work lie
unless they are very many. Logits are read in their own dtype.

Four criteria are equations (``triton_roots.py``), ``snr`` is a maximum (``triton_snr.py``). float64 logits are
solved by plain torch on the GPU.

With TRITON_INTERPRET=1 in the environment the kernels run on a CPU, slowly, which is how they are tested.
"""

import math

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from klent.mixture.triton_roots import solve_root
from klent.mixture.triton_snr import solve_snr

BLOCK = 2048  # tokens that one step holds, 4 for every thread
SNR_BLOCK = 512  # the same for snr, whose sums are float64 and for 8 points at a time: 1 for every thread
_SWEEPS = 60
_EPS = torch.finfo(torch.float32).eps


def solve_on_chip(
    policy: Tensor,
    target: Tensor,
    log_q: Tensor,
    criterion: str,
    value: float,
    reward: Tensor | None,
    tolerance: float,
) -> Tensor:
    """Fill ``log_q`` ``[R, V]`` float32; return what :func:`solve_alpha` says of a row, ``[6, R]`` float32.

    Args:
        policy, target: ``[R, V]``, float32, float16 or bfloat16, not necessarily alike.
        log_q: contiguous.
        criterion, value, reward, tolerance: as of ``solve_alpha``, the reward ``[R, V]``.

    Returns:
        alpha, KL to the policy and to the target, sweeps, converged, residual.
    """
    rows, size = policy.shape
    numbers = torch.empty(6, rows, device=policy.device)
    if rows == 0:
        return numbers
    policy, target = (x if x.stride(1) == 1 else x.contiguous() for x in (policy, target))
    largest, at_once = (SNR_BLOCK, 1) if criterion == "snr" else (BLOCK, 4)
    block = min(max(triton.next_power_of_2(size), 32), largest)
    options = {"LIMIT": _SWEEPS, "BLOCK": block, "num_warps": max(block // at_once // 32, 1)}
    both = policy, policy.stride(0), target, target.stride(0)
    with torch.cuda.device_of(policy):
        if criterion == "snr":
            r = policy if reward is None else reward if reward.stride(1) == 1 else reward.contiguous()
            solve_snr[(rows,)](
                *both, r, r.stride(0), log_q, numbers, rows, size, REWARD=reward is not None, **options
            )  # fmt: skip
        else:
            value = math.log(value) if criterion == "ess" else float(value)
            solve_root[(rows,)](
                *both, log_q, numbers, rows, size, tolerance, _EPS, value, CRITERION=criterion, **options
            )  # fmt: skip
    return numbers
