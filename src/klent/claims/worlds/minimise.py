"""Training to convergence, where the optimum itself is the question."""

from collections.abc import Callable

import torch
from torch import Tensor


def minimise(loss: Callable[[], Tensor], *parameters: Tensor, iterations: int = 500) -> None:
    """Full-batch L-BFGS with a line search, to convergence."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    optimizer.step(closure)
