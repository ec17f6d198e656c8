"""Sampling on the device: draw a token per row, note it, read it, again; recorded once and replayed.

One step of :class:`GraphSampler` is a fixed sequence of operations on fixed memory, its counters included, so that a
GPU replays it as one launch in place of some hundreds from Python, which is what a step costs otherwise. The host
looks in every :data:`ASK` steps: which rows have ended, and whether a stop string has come up. Rows that have ended
go on drawing until half of them have; then the others move together, and a step of half the size is recorded.

On a CPU the same step runs as it is: same memory, same counters, same numbers.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from klent.errors import first_line
from klent.models.exact import close
from klent.policies.causal_lm.model import CausalModel, attention_window
from klent.policies.causal_lm.probe import REFUSALS, agrees, evaluating
from klent.rollout.decoding import made_up, read_alone, trial
from klent.rollout.fused import Fused, has_kernels
from klent.rollout.sampling import Sampled, diverged, draw
from klent.rollout.static import StaticCache, StaticDecoder

ASK = 16  # steps between two looks: each waits for the device, and rows that end meanwhile draw in vain
Step = Callable[[], None]
Decoding = Literal["auto", "eager", "graph"]


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

    def pool(self) -> Any:
        """That of the graphs there are: torch takes a pool away with the last of its graphs."""
        return next((graph.pool() for graph in self.graphs), None)

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
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool(), capture_error_mode="thread_local"):
                    step()
                self.graphs.add(graph)
            graph.replay()

        return run


class Draw(NamedTuple):
    """How tokens are drawn; see :func:`klent.rollout.sampling.sample_tokens`."""

    temperature: float
    top_p: float
    top_k: int


class Completions(NamedTuple):
    """What was said, row by row: so many tokens each, and of each token the numbers of ``Sampled``."""

    tokens: Tensor
    """``[R, T]``"""
    numbers: Tensor
    """``[R, T, 4]``"""
    lengths: list[int]
    stopped: list[bool]


class _Notes:
    """What the rows have said, by their first order; and what they draw with."""

    def __init__(self, logits: Tensor, room: int) -> None:
        total, device = len(logits), logits.device
        self.logits = torch.zeros_like(logits)
        self.uniform = torch.zeros(total, room, device=device)
        self.temperature = torch.ones((), device=device)
        self.tokens = torch.zeros(total, room, dtype=torch.int64, device=device)
        self.numbers = torch.zeros(total, room, 4, device=device)
        self.room = torch.zeros(total, dtype=torch.int64, device=device)
        self.count = torch.zeros(total, dtype=torch.int64, device=device)
        self.ended = torch.zeros(total, dtype=torch.bool, device=device)
        self.stopped = torch.zeros(total, dtype=torch.bool, device=device)
        self.broken = torch.zeros((), dtype=torch.int64, device=device)

    def begin(self, logits: Tensor, uniform: Tensor, rooms: Sequence[int], temperature: float) -> None:
        """Nothing is said yet."""
        self.logits.copy_(logits)
        self.uniform.copy_(uniform)
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
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        pad: int,
        stop_ids: Sequence[int],
        record: Recorder = as_it_is,
        fused: Fused | None = None,
    ) -> None:
        self.model, self.pad, self.record, self.fused = model, pad, record, fused
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=model.device)
        self.cache: StaticCache | None = None
        self.steps: dict[tuple[object, ...], Step] = {}

    def release(self) -> None:
        """Give up the memory of earlier calls, with what was recorded on it."""
        self.cache, self.steps = None, {}

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        uniform: Tensor,
        rooms: Sequence[int],
        how: Draw,
        meets_stop: Callable[[list[int]], bool] | None = None,
    ) -> Completions:
        """``group_size`` completions of every prompt, prompt by prompt.

        Args:
            uniform: a number in [0, 1) for every token that there may be, ``[R, T]``.
            rooms: the most tokens of each row, at most ``T``.
            how: the distribution.
            meets_stop: whether a row ends with its newest token; None = only ``stop_ids`` end one.

        Raises:
            DivergenceError: logits that are not finite.
        """
        room = uniform.shape[1]
        decoder = StaticDecoder(
            self.model,
            prompts,
            group_size=group_size,
            pad=self.pad,
            room=room,
            cache=self.cache,
            fused=self.fused,
        )
        earlier = self.cache
        self.cache = None  # where an error comes between, the memory is not trusted again
        logits = decoder.start()
        if decoder.cache is not earlier:
            self.steps, self.notes = {}, _Notes(logits, room)
        self.notes.begin(logits, uniform, rooms, how.temperature)
        self._run(decoder, how, max(rooms), meets_stop)
        self.cache = decoder.cache
        notes = self.notes
        count, stopped = notes.count.tolist(), notes.stopped.tolist()
        return Completions(notes.tokens.cpu(), notes.numbers.cpu(), count, stopped)

    def _run(
        self, decoder: StaticDecoder, how: Draw, most: int, meets_stop: Callable[[list[int]], bool] | None
    ) -> None:
        cache, looked = decoder.cache, 0
        for done in range(most):
            cache.look(done)
            self._step(decoder, how)()
            if (done + 1) % ASK and done + 1 < most:
                continue
            if meets_stop is not None:
                self._cut(looked, done + 1, meets_stop)
                looked = done + 1
            going = self._going(cache)
            if not going:
                return
            self._shrink(cache, going)

    def _step(self, decoder: StaticDecoder, how: Draw) -> Step:
        """The recorded step for so many rows and places."""
        cache = decoder.cache
        key = (cache.rows, cache.window, cache.in_order, how.temperature == 0, how.top_p, how.top_k)
        if key not in self.steps:
            self.steps[key] = self.record(partial(self._advance, decoder, how))
        return self.steps[key]

    def _advance(self, decoder: StaticDecoder, how: Draw) -> None:
        """One token for every row: nothing here depends on a number that the device holds."""
        notes, cache = self.notes, decoder.cache
        rows, place = cache.rows, cache.position
        line = cache.slot[:rows]
        uniform = notes.uniform.index_select(1, place)[:, 0].index_select(0, line)
        drawn, largest = self._draw(notes.logits[:rows], uniform, how)
        going = ~notes.ended.index_select(0, line)
        notes.broken += (~largest.isfinite() & going).sum()
        token = torch.where(going, drawn.token, self.pad)
        at = (line, place.expand(rows))
        notes.tokens.index_put_(at, token)
        notes.numbers.index_put_(at, torch.stack(drawn[1:], dim=-1))
        stopped = (token[:, None] == self.stop_ids).any(dim=-1) & going
        full = place + 1 >= notes.room.index_select(0, line)
        count = torch.where(going, place + 1, notes.count.index_select(0, line))
        notes.count.index_copy_(0, line, count)
        notes.stopped.index_copy_(0, line, notes.stopped.index_select(0, line) | stopped)
        notes.ended.index_copy_(0, line, ~going | stopped | full)
        notes.logits[:rows].copy_(decoder.read(token))

    def _draw(self, logits: Tensor, uniform: Tensor, how: Draw) -> tuple[Sampled, Tensor]:
        """As :func:`klent.rollout.sampling.draw`."""
        temperature = self.notes.temperature
        if self.fused is not None and how.temperature and how.top_p == 1.0 and not how.top_k:
            from klent.rollout.triton import draw as draw_on_chip

            token, numbers = draw_on_chip(logits, uniform, temperature)
            return Sampled(token, *numbers[:, :4].unbind(1)), numbers[:, 4]
        heat = temperature if how.temperature else 0.0
        return draw(logits, uniform, temperature=heat, top_p=how.top_p, top_k=how.top_k)

    def _going(self, cache: StaticCache) -> list[int]:
        """The rows that have not ended: the one number that a look waits for."""
        notes = self.notes
        ended = notes.ended.index_select(0, cache.slot[: cache.rows]).long()
        *ended_rows, broken = torch.cat([ended, notes.broken[None]]).tolist()
        if broken:
            raise diverged(broken, cache.rows)
        return [row for row, over in enumerate(ended_rows) if not over]

    def _shrink(self, cache: StaticCache, going: list[int]) -> None:
        """Half as many rows, or fewer, where they hold all that go on."""
        size = cache.rows
        while size > 1 and len(going) <= -(-size // 2):
            size = -(-size // 2)
        if size < cache.rows:
            order = cache.shrink(going, size)
            self.notes.logits[:size] = self.notes.logits[order]

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


def choose_sampler(
    model: CausalModel,
    *,
    pad: int,
    stop_ids: Sequence[int],
    decoding: Decoding,
    alone: bool,
    note: Callable[[str], None],
) -> GraphSampler | None:
    """What draws on the device by itself; None where that is not asked for, or the model does not allow it.

    Args:
        model, pad, stop_ids: as of :class:`GraphSampler`.
        decoding: ``auto`` asks for it on a GPU.
        alone: whether tokens are drawn from this model's logits alone.
        note: told why it cannot be had.
    """
    on_gpu = model.device.type == "cuda"
    if not (decoding == "graph" or (decoding == "auto" and on_gpu)):
        return None
    record: Recorder = CudaRecorder() if on_gpu else as_it_is
    reason: str | None = "two models give each token's distribution"
    for fused in _ways(model) if alone else ():
        reason = graph_refusal(model, record, fused)
        if reason is None:
            return GraphSampler(model, pad=pad, stop_ids=stop_ids, record=record, fused=fused)
    note(f"rollout.decoding: step by step from Python (slower, as exact), not one recorded step: {reason}")
    return None


def _ways(model: CausalModel) -> Iterator[Fused | None]:
    if has_kernels(model.device):
        yield Fused(model)
    yield None


def graph_refusal(model: CausalModel, record: Recorder, fused: Fused | None = None) -> str | None:
    """Why a model cannot be sampled by a :class:`GraphSampler`; None where it can: tried on made-up tokens."""
    if attention_window(model) is not None:
        return "its attention has a window"
    try:
        decoder = partial(StaticDecoder, fused=fused)
        if not agrees(model, lambda: read_alone(model), partial(trial, decoder, model), rounding=3e-2):
            return "its attention or its cache does more than scores and a softmax over keys and values"
        if record is as_it_is:
            return None
        with evaluating(model):
            usual, recorded = (_made_up_numbers(model, some, fused) for some in (as_it_is, record))
    except REFUSALS as error:
        return f"it cannot be recorded ({first_line(error)})"
    except Exception as error:  # a compiler's errors are of no common type
        if fused is None:
            raise
        return f"klent's kernels do not run here ({first_line(error)})"
    return None if close(usual, recorded, model.dtype) else "recorded, its numbers are others"


def _made_up_numbers(model: CausalModel, record: Recorder, fused: Fused | None) -> Tensor:
    """Numbers of some tokens that a model says behind made-up prompts."""
    prompts, _ = made_up(model)
    uniform = torch.linspace(0.1, 0.9, 4 * 6).view(4, 6)
    sampler = GraphSampler(model, pad=0, stop_ids=(), record=record, fused=fused)
    how = Draw(temperature=1.0, top_p=1.0, top_k=0)
    return sampler(prompts, group_size=2, uniform=uniform, rooms=[6] * 4, how=how).numbers
