"""The least time that a step's matrix products take on this machine: what the measured time is held against.

A phase cannot be faster than its products at the rate that the machine multiplies matrices, nor than its
weights at the rate that it reads memory. Both rates are measured once, in a few hundredths of a second, when
a run starts; the rest is counting.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from klent.head.products import product
from klent.streams.batch import Batch
from klent.training.update import UpdateResult

SIZE = 1024  # rows and columns of the product that is timed: large enough for the machine's full rate


@dataclass(frozen=True)
class Floor:
    """Rates of the machine and sizes of the model.

    Attributes:
        operations: multiplications and additions a second of a float32 (or the model's) product.
        bytes: read from memory a second.
        body: weights that multiply every token.
        head: weights that multiply every predicted token.
        width: bytes of a weight.
        trained: products of a weight of the body and of the head in forward and backward: 3 and 4 where it is
            trained (the head's logits are computed twice rather than kept), 2 and 3 where it is frozen.
    """

    operations: float
    bytes: float
    body: int
    head: int
    width: int
    trained: tuple[int, int]

    @classmethod
    def of(cls, model: Any) -> "Floor":
        """Measure this machine, and count this model's matrices."""
        head = model.get_output_embeddings().weight
        tables = {id(head), id(model.get_input_embeddings().weight)}
        matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in tables]
        x = torch.ones(SIZE, SIZE, dtype=model.dtype, device=model.device)
        block = torch.ones(2**24, dtype=torch.uint8, device=model.device)  # 16 MB, more than most caches
        return cls(
            operations=2 * SIZE**3 / _seconds(lambda: product(x, x), model.device),
            bytes=2 * block.nbytes / _seconds(block.clone, model.device),
            body=sum(p.numel() for p in matrices),
            head=head.numel(),
            width=head.element_size(),
            trained=(3 if any(p.requires_grad for p in matrices) else 2, 4 if head.requires_grad else 3),
        )

    def rollout(self, batch: Batch) -> float:
        """Seconds: each prompt once, then every sampled token, the weights read anew for each place."""
        pairs = zip(batch.group.tolist(), batch.episodes, strict=True)
        prompts = {group: len(episode.prompt_ids) for group, episode in pairs}
        first = 2 * (self.body * sum(prompts.values()) + self.head * len(prompts)) / self.operations
        later = batch.tokens - len(batch.mask)  # the prompt's own pass brings a row its first token
        products = 2 * (self.body + self.head) * later / self.operations
        reading = (self.body + self.head) * self.width * (batch.mask.shape[1] - 1) / self.bytes
        return first + max(products, reading)

    def train(self, result: UpdateResult) -> float:
        """Seconds: all products of forward and backward on the tokens that went through the model."""
        body, head = self.trained
        return 2 * (body * self.body * result.tokens + head * self.head * result.targets) / self.operations


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The shortest of several runs, the first apart."""
    times = []
    for _ in range(8):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
