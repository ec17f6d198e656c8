"""How a step is recorded: made once into something that does the same again on the same memory."""

import weakref
from collections.abc import Callable
from typing import Protocol

import torch

Step = Callable[[], None]


class Recorder(Protocol):
    """Makes something of a step that does the same, again and again, on the memory that it has now."""

    def __call__(self, step: Step) -> Step: ...


def as_it_is(step: Step) -> Step:
    """On a CPU nothing is recorded."""
    return step


class CudaRecorder:
    """CUDA graphs that share their scratch memory; the first call of each runs the step, which loads its kernels."""

    def __init__(self) -> None:
        self.graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, step: Step) -> Step:
        graph: torch.cuda.CUDAGraph | None = None
        warm = False

        def run() -> None:
            nonlocal graph, warm
            if not warm:
                warm = True
                beside = torch.cuda.Stream()
                beside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(beside):
                    step()
                torch.cuda.current_stream().wait_stream(beside)
                return
            if graph is None:
                # torch takes a pool away with the last of its graphs: that of one that lives is asked for.
                pool = next((living.pool() for living in self.graphs), None)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    step()
                self.graphs.add(graph)
            graph.replay()

        return run
