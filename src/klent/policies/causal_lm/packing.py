"""From a step's completions to the rows that the model reads.

A group's completions stand behind their one shared prompt in a single row::

    tokens      prompt  completion A  completion B  completion C    (each without its last token)
    positions   0..P-1  P..           P..           P..
    A sees the prompt and itself, B sees the prompt and itself, ...

so the prompt is computed once a group and not once a completion. Nothing else changes: every token sees the
very tokens at the very positions that it would see in a row of its own. Models whose attention takes no such
mask get one padded row per completion instead: :mod:`klent.policies.causal_lm.probe` asks the model, not its
name.

Rows of unequal lengths are padded to the longest. Where :class:`Packing` joins them, several prompts with their
completions stand behind one another in a row, each a segment that sees itself alone and whose positions begin
at 0, so that hardly anything is padded::

    tokens      prompt 1  completion A  completion B  prompt 2  completion C  ...
    segment     0         0             0             1         1
    owner       0         1             2             0         1
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from klent.streams.batch import Batch


@dataclass(frozen=True)
class Completion:
    """One episode to compute.

    Attributes:
        index: its row in the step's ``[B, T]`` grid.
        prompt_ids: what stands before it.
        tokens: the tokens that follow, ``[L]``.
        group: the prompt that it answers; neighbours of one group may share a row.
        unit: rows with one number are read together and stay in one micro-batch.
        acted: True on the policy's own tokens, ``[L]``; None = all of them.
    """

    index: int
    prompt_ids: list[int]
    tokens: Tensor
    group: int = 0
    unit: int | None = None
    acted: Tensor | None = None


@dataclass(frozen=True)
class Packing:
    """How a policy lays rows out.

    Attributes:
        shared: put the completions of a prompt behind one copy of it.
        budget: tokens (padding included) in one forward pass.
        joined: longest row in which several prompts stand behind one another, tokens; 0 = one prompt a row. It
            needs ``shared``, whose mask it extends.
    """

    shared: bool = False
    budget: int = 4096
    joined: int = 0


def completions(batch: Batch, rows: Iterable[int]) -> list[Completion]:
    """These rows of a batch as the packer takes them."""
    group, unit = batch.group.tolist(), batch.unit.tolist()
    return [
        Completion(row, e.prompt_ids, e.tokens, group[row], unit[row], e.acted)
        for row, e in ((row, batch.episodes[row]) for row in rows)
    ]


@dataclass(frozen=True)
class Pack:
    """Rows for one forward pass, and where its answers belong.

    Attributes:
        input_ids: ``[R, L]``, padded on the right with 0.
        position_ids: ``[R, L]``.
        segment: the prompt that each token stands behind or is of, counted from 0 in its row, ``[R, L]``.
        owner: whose each token is, ``[R, L]``: -1 padding, 0 the prompt, k the segment's k-th completion. Where
            every prompt of joined rows has one completion, the two are one causal sequence, all 0.
        shared: whether completions stand behind one another.
        source: which of the ``R * L`` hidden states predicts action n, ``[N]``.
        target: that token, ``[N]``.
        row: its row in the step's grid, ``[N]``.
        column: its column there, ``[N]``.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment: Tensor
    owner: Tensor
    shared: bool
    source: Tensor
    target: Tensor
    row: Tensor
    column: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.input_ids.numel()

    def attention_mask(self) -> Tensor:
        """``[R, 1, L, L]``, added to the attention scores (shared prompts), or ``[R, L]`` of 0 and 1."""
        return _block_mask(self.owner, self.segment) if self.shared else (self.owner >= 0).long()


Group = list[Completion]  # completions that share a row: those of one prompt stand together, and share it too


def make_groups(completions: Iterable[Completion], *, shared: bool, budget: int) -> list[Group]:
    """Cut completions into rows: those of one prompt together, as far as ``budget`` tokens reach.

    Args:
        completions: in grid order; neighbours with the same prompt belong together.
        shared: False puts every completion into a row of its own.
        budget: the longest row to build, tokens; a single completion may exceed it.
    """
    groups: list[Group] = []
    for item in completions:
        last = groups[-1] if groups else None
        together = shared and last is not None and _same_prompt(last[-1], item)
        if last is not None and together and row_length(last) + len(item.tokens) - 1 <= budget:
            last.append(item)
        else:
            groups.append([item])
    return groups


def join_groups(groups: Iterable[Group], *, longest: int) -> list[Group]:
    """Groups behind one another in rows of at most ``longest`` tokens: first fit, longest first.

    A group that is longer stays alone. Any set of the rows, joined again, gives the same rows: a group never
    looks at rows behind its own.
    """
    rows: list[Group] = []
    room: list[int] = []
    for group in sorted(groups, key=row_length, reverse=True):
        length = row_length(group)
        place = next((i for i, free in enumerate(room) if free >= length), None)
        if place is None:
            rows.append(list(group))
            room.append(longest - length)
        else:
            rows[place] += group
            room[place] -= length
    return rows


def segments(group: Group) -> Iterator[list[Completion]]:
    """The completions of each prompt of a row."""
    segment: list[Completion] = []
    for item in group:
        if segment and not _same_prompt(segment[-1], item):
            yield segment
            segment = []
        segment.append(item)
    if segment:
        yield segment


def _same_prompt(one: Completion, other: Completion) -> bool:
    return one.group == other.group and one.prompt_ids == other.prompt_ids


def make_microbatches(groups: Sequence[Group], *, budget: int) -> list[list[Group]]:
    """Rows of similar length together, at most ``budget`` tokens (padding included) per micro-batch.

    Rows that hold parts of one unit stay together, whatever the budget says.
    """
    batches: list[list[Group]] = []
    for cell in sorted(_cells(groups), key=_longest, reverse=True):
        if batches and _longest(batches[-1]) * (len(batches[-1]) + len(cell)) <= budget:
            batches[-1] += cell
        else:
            batches.append(list(cell))
    return batches


def _cells(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that must not part: those that hold completions of one unit."""
    cells: list[list[Group]] = []
    cell_of: dict[int, list[Group]] = {}
    for group in groups:
        units = {item.unit for item in group if item.unit is not None}
        cell = next((cell_of[unit] for unit in units if unit in cell_of), None)
        if cell is None:
            cell = []
            cells.append(cell)
        cell.append(group)
        cell_of |= dict.fromkeys(units, cell)
    return cells


def _longest(groups: Sequence[Group]) -> int:
    return max(map(row_length, groups))


def observations(groups: Iterable[Group]) -> list[Group]:
    """The same rows with what was said between actions in place of the actions."""
    return [[replace(item, acted=~_acted(item)) for item in group] for group in groups]


def _acted(item: Completion) -> Tensor:
    return torch.ones(len(item.tokens), dtype=torch.bool) if item.acted is None else item.acted


def pack(groups: Sequence[Group], *, shared: bool) -> Pack:
    """Lay groups out as rows; ``shared`` as in :func:`make_groups`."""
    rows = [list(segments(group)) for group in groups]
    shape = len(groups), max(map(row_length, groups))
    ids, positions, segment = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    owner = torch.full(shape, -1)
    joined = any(len(row) > 1 for row in rows)
    sequences = joined and all(len(items) == 1 for row in rows for items in row)
    answers: list[tuple[Tensor, ...]] = []
    for r, row in enumerate(rows):
        start = 0
        for s, items in enumerate(row):
            prompt = torch.tensor(items[0].prompt_ids)
            first, start = start, start + len(prompt)
            here = slice(first, start)
            ids[r, here], positions[r, here] = prompt, torch.arange(len(prompt))
            owner[r, here] = 0
            for k, item in enumerate(items, start=1):
                # The prompt's last token predicts the first one, each token the next, the last one nothing.
                count = len(item.tokens)
                here = slice(start, start + count - 1)
                ids[r, here] = item.tokens[:-1]
                positions[r, here] = torch.arange(len(prompt), len(prompt) + count - 1)
                owner[r, here] = 0 if sequences else k
                before = torch.arange(start - 1, start + count - 1)
                before[0] = first + len(prompt) - 1
                column = torch.arange(count) if item.acted is None else item.acted.nonzero()[:, 0]
                number = torch.full((len(column),), item.index)
                answers.append((r * shape[1] + before[column], item.tokens[column], number, column))
                start += count - 1
            segment[r, first:start] = s
    return Pack(ids, positions, segment, owner, shared, *(torch.cat(x) for x in zip(*answers, strict=True)))


def row_length(group: Group) -> int:
    """Tokens of the row that a group makes."""
    return sum(
        len(items[0].prompt_ids) + sum(len(item.tokens) - 1 for item in items) for items in segments(group)
    )


def _block_mask(owner: Tensor, segment: Tensor) -> Tensor:
    """Additive mask ``[R, 1, L, L]``: a token sees what precedes it of its prompt and its completion."""
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = owner[:, :, None] == owner[:, None, :]
    prompt = (owner == 0)[:, None, :]
    together = segment[:, :, None] == segment[:, None, :]
    seen = causal & together & (same | prompt)  # padding sees padding: no row of the softmax is empty
    lowest = torch.finfo(torch.float32).min
    return torch.where(seen, 0.0, lowest)[:, None]
