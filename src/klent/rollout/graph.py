"""Sampling on the device: draw a token per row, note it, read it, again; recorded once and replayed.

One step of :class:`GraphSampler` is a fixed sequence of operations on fixed memory, its counters included, so that a
GPU replays it as one launch in place of some hundreds from Python, which is what a step costs otherwise. The host
looks in every :data:`ASK` steps: which rows have ended, and whether a stop string has come up. Rows that have ended
go on drawing until half of them have; then the others move together, and a step of half the size is recorded.

On a CPU the same step runs as it is: same memory, same counters, same numbers.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from klent.policies.causal_lm.model import CausalModel
from klent.rollout.fused import Fused
from klent.rollout.how import How
from klent.rollout.recorder import Recorder, Step, as_it_is
from klent.rollout.sampling import diverged
from klent.rollout.static import StaticCache, StaticDecoder

ASK = 16  # steps between two looks: each waits for the device, and rows that end meanwhile draw in vain


class Reader(NamedTuple):
    """A model that reads what is said."""

    model: CausalModel
    fused: Fused | None = None
    """Its small operations in kernels, attention among them; None = as they are."""
    active: Callable[[], AbstractContextManager[object]] = nullcontext
    """A context in which the model stands for itself, such as one that switches an adapter off."""


class Completions(NamedTuple):
    """What was said, row by row: so many tokens each, and of each token the numbers that its draw has."""

    tokens: Tensor
    """``[R, T]``"""
    numbers: Tensor
    """``[R, T, columns]``"""
    lengths: list[int]
    stopped: list[bool]


class _Notes:
    """What the rows have said, by their first order; and what they draw with."""

    def __init__(self, logits: Sequence[Tensor], room: int, columns: int) -> None:
        total, device = len(logits[0]), logits[0].device
        self.logits = [torch.zeros_like(own) for own in logits]
        self.uniform = torch.zeros(total, room, device=device)
        self.temperature = torch.ones((), device=device)
        self.tokens = torch.zeros(total, room, dtype=torch.int64, device=device)
        self.numbers = torch.zeros(total, room, columns, device=device)
        self.share = torch.zeros(total, device=device)
        self.room = torch.zeros(total, dtype=torch.int64, device=device)
        self.count = torch.zeros(total, dtype=torch.int64, device=device)
        self.ended = torch.zeros(total, dtype=torch.bool, device=device)
        self.stopped = torch.zeros(total, dtype=torch.bool, device=device)
        self.broken = torch.zeros((), dtype=torch.int64, device=device)

    def begin(
        self,
        logits: Sequence[Tensor],
        uniform: Tensor,
        rooms: Sequence[int],
        temperature: float,
        share: Tensor | None,
    ) -> None:
        """Nothing is said yet."""
        for memory, own in zip(self.logits, logits, strict=True):
            memory.copy_(own)
        self.uniform.copy_(uniform)
        if share is not None:
            self.share.copy_(share)
        self.temperature.fill_(temperature)
        self.room.copy_(torch.tensor(rooms))
        for memory in (self.count, self.ended, self.stopped, self.broken):
            memory.zero_()


class GraphSampler:
    """Completions of prompts, their rows decoded together; memory and recordings serve the next call too.

    Args:
        model: samples.
        pad: fills prompts up, and is read by rows that have ended.
        stop_ids: tokens that end a row.
        record: what a step is made into.
        fused: the model's small operations in kernels, attention and the draw among them; None = as they are.
        beside: a further model whose logits the draw asks for.
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        pad: int,
        stop_ids: Sequence[int],
        record: Recorder = as_it_is,
        fused: Fused | None = None,
        beside: Reader | None = None,
    ) -> None:
        self.pad, self.record, self.fused = pad, record, fused
        self.readers = [Reader(model, fused), *([] if beside is None else [beside])]
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=model.device)
        self.caches: list[StaticCache | None] = [None] * len(self.readers)
        self.drawn_by: tuple[object, ...] = ()  # what the recordings draw with
        self.steps: dict[tuple[object, ...], Step] = {}

    def release(self) -> None:
        """Give up the memory of earlier calls, with what was recorded on it."""
        self.caches, self.steps = [None] * len(self.readers), {}

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        uniform: Tensor,
        rooms: Sequence[int],
        how: How,
        meets_stop: Callable[[list[int]], bool] | None = None,
        beside: Sequence[Sequence[int]] = (),
        share: Tensor | None = None,
    ) -> Completions:
        """``group_size`` completions of every prompt, prompt by prompt.

        Args:
            uniform: a number in [0, 1) for every token that there may be, ``[R, T]``.
            rooms: the most tokens of each row, at most ``T``.
            how: the distribution.
            meets_stop: whether a row ends with its newest token; None = only ``stop_ids`` end one.
            beside: the prompts as the model beside reads them.
            share: a number of each row for the draw, ``[R]``.

        Raises:
            DivergenceError: logits that are not finite.
        """
        room = uniform.shape[1]
        asked = [prompts, *([beside] if len(self.readers) > 1 else [])]
        decoders = [
            StaticDecoder(
                reader.model,
                its,
                group_size=group_size,
                pad=self.pad,
                room=room,
                cache=cache,
                fused=reader.fused,
            )
            for reader, its, cache in zip(self.readers, asked, self.caches, strict=True)
        ]
        earlier = self.caches
        self.caches = [None] * len(
            self.readers
        )  # where an error comes between, the memory is not trusted again
        logits = [self._active(number, decoder.start) for number, decoder in enumerate(decoders)]
        caches = [decoder.cache for decoder in decoders]
        if any(one is not other for one, other in zip(caches, earlier, strict=True)):
            self.steps, self.notes = {}, _Notes(logits, room, how.columns)
        if self.drawn_by != how.key:
            self.steps, self.drawn_by = {}, how.key
        self.notes.begin(logits, uniform, rooms, how.temperature, share)
        self._run(decoders, how, max(rooms), meets_stop)
        self.caches = [*caches]
        notes = self.notes
        count, stopped = notes.count.tolist(), notes.stopped.tolist()
        return Completions(notes.tokens.cpu(), notes.numbers.cpu(), count, stopped)

    def _active(self, number: int, work: Callable[[], Tensor]) -> Tensor:
        """What a reader's decoder gives, in the context where its model stands for itself."""
        with self.readers[number].active():
            return work()

    def _run(
        self,
        decoders: Sequence[StaticDecoder],
        how: How,
        most: int,
        meets_stop: Callable[[list[int]], bool] | None,
    ) -> None:
        caches, looked = [decoder.cache for decoder in decoders], 0
        for done in range(most):
            for cache in caches:
                cache.look(done)
            self._step(decoders, how)()
            if (done + 1) % ASK and done + 1 < most:
                continue
            if meets_stop is not None:
                self._cut(looked, done + 1, meets_stop)
                looked = done + 1
            going = self._going(caches[0])
            if not going:
                return
            self._shrink(caches, going)

    def _step(self, decoders: Sequence[StaticDecoder], how: How) -> Step:
        """The recorded step for so many rows and places."""
        cache, *others = (decoder.cache for decoder in decoders)
        windows = tuple(other.window for other in others)
        key = (cache.rows, cache.window, cache.in_order, *windows)
        if key not in self.steps:
            self.steps[key] = self.record(partial(self._advance, decoders, how))
        return self.steps[key]

    def _advance(self, decoders: Sequence[StaticDecoder], how: How) -> None:
        """One token for every row: nothing here depends on a number that the device holds."""
        notes, cache = self.notes, decoders[0].cache
        rows, place = cache.rows, cache.position
        line = cache.slot[:rows]
        drawn = how(
            [memory[:rows] for memory in notes.logits],
            notes.uniform.index_select(1, place)[:, 0].index_select(0, line),
            temperature=notes.temperature,
            share=notes.share.index_select(0, line),
            fused=self.fused is not None,
        )
        going = ~notes.ended.index_select(0, line)
        notes.broken += (~drawn.largest.isfinite() & going).sum()
        token = torch.where(going, drawn.token, self.pad)
        at = (line, place.expand(rows))
        notes.tokens.index_put_(at, token)
        notes.numbers.index_put_(at, torch.stack([*drawn.numbers], dim=-1))
        stopped = (token[:, None] == self.stop_ids).any(dim=-1) & going
        full = place + 1 >= notes.room.index_select(0, line)
        count = torch.where(going, place + 1, notes.count.index_select(0, line))
        notes.count.index_copy_(0, line, count)
        notes.stopped.index_copy_(0, line, notes.stopped.index_select(0, line) | stopped)
        notes.ended.index_copy_(0, line, ~going | stopped | full)
        for number, (memory, decoder) in enumerate(zip(notes.logits, decoders, strict=True)):
            memory[:rows].copy_(self._active(number, partial(decoder.read, token)))

    def _going(self, cache: StaticCache) -> list[int]:
        """The rows that have not ended: the one number that a look waits for."""
        notes = self.notes
        ended = notes.ended.index_select(0, cache.slot[: cache.rows]).long()
        *ended_rows, broken = torch.cat([ended, notes.broken[None]]).tolist()
        if broken:
            raise diverged(broken, cache.rows)
        return [row for row, over in enumerate(ended_rows) if not over]

    def _shrink(self, caches: Sequence[StaticCache], going: list[int]) -> None:
        """Half as many rows, or fewer, where they hold all that go on."""
        rows = size = caches[0].rows
        while size > 1 and len(going) <= -(-size // 2):
            size = -(-size // 2)
        if size < rows:
            for cache, logits in zip(caches, self.notes.logits, strict=True):
                order = cache.shrink(going, size)  # of all caches the same
                logits[:size] = logits[order]

    def _cut(self, looked: int, done: int, meets_stop: Callable[[list[int]], bool]) -> None:
        """End the rows in which a stop string has come up since the last look, behind it."""
        notes = self.notes
        tokens, count = notes.tokens[:, :done].tolist(), notes.count.tolist()
        cut = {
            row: end
            for row, said in enumerate(tokens)
            if count[row] > looked
            and (end := next((n for n in range(looked + 1, count[row] + 1) if meets_stop(said[:n])), 0))
        }
        if cut:
            rows = torch.tensor(list(cut), device=notes.count.device)
            notes.count[rows] = torch.tensor(list(cut.values()), device=rows.device)
            notes.stopped[rows] = True
            notes.ended[rows] = True
