"""What a decoded token costs beside its products, in five kernels in place of some forty operations a layer.

A token of one row is little work, and a device spends most of a step between kernels. Each kernel here rounds where
the operations that it replaces round, but for attention, whose scores and softmax stay in float32.

With TRITON_INTERPRET=1 in the environment the kernels run on a CPU, slowly, which is how they are tested.
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

FLOOR = tl.constexpr(-1e30)  # stands for -inf where a difference of two would be NaN
BLOCK = 64  # tokens that attention looks at together
PER_PROCESSOR = 4  # programs that attention is split into for each of a device's processors, at most
PIECE = 256  # tokens that a part of a split attention has at least
WORDS = 4096  # of the vocabulary that are weighed together


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight · x / rms(x)``, ``[..., H]``: the ratio in float32, rounded as ``x`` is before the weight comes."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows, dtype=torch.promote_types(x.dtype, weight.dtype))
    width = rows.shape[1]
    block = triton.next_power_of_2(width)
    _normalise[(len(rows),)](
        rows, rows.stride(0), weight, out, eps, width, BLOCK=block, num_warps=min(max(block // 256, 1), 8)
    )
    return out.view(x.shape)


@triton.jit
def _normalise(x, stride, weight, out, eps, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    value = tl.load(x + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    value = (value * scale).to(x.dtype.element_ty).to(tl.float32)
    value *= tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, value.to(out.dtype.element_ty), mask=mask)


def gate(gates: Tensor, values: Tensor) -> Tensor:
    """``silu(gates) · values``, element by element."""
    gates, values = gates.contiguous(), values.contiguous()
    out = torch.empty_like(values)
    size = out.numel()
    _gate[(triton.cdiv(size, 1024),)](gates, values, out, size, BLOCK=1024)
    return out


@triton.jit
def _gate(gates, values, out, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    x = tl.load(gates + at, mask=mask, other=0.0).to(tl.float32)
    y = (x / (1.0 + tl.exp(-x))).to(out.dtype.element_ty).to(tl.float32)
    y *= tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions of one token per row: ``x · cos + half_turn(x) · sin``.

    Args:
        query: ``[R, heads, 1, D]``.
        key: ``[R, K, 1, D]``.
        cos, sin: ``[R, 1, D]``.
    """
    query, key = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
    cos, sin = cos.contiguous(), sin.contiguous()
    rows, heads, _, width = query.shape
    kv_heads = key.shape[1]
    outs = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key))
    _rotate[(rows, heads + kv_heads)](
        query, query.stride(0), query.stride(1), key, key.stride(0), key.stride(1), cos, sin, *outs,
        heads, kv_heads, HALF=width // 2, BLOCK=triton.next_power_of_2(width // 2), num_warps=1,
    )  # fmt: skip
    return outs[0], outs[1]


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    query, query_row, query_head, key, key_row, key_head, cos, sin, query_out, key_out, heads, kv_heads,
    HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if head < heads:
        x = query + row * query_row + head * query_head
        out = query_out + (row * heads + head) * 2 * HALF
        _turn(x, cos + row * 2 * HALF, sin + row * 2 * HALF, out, HALF, BLOCK)
    else:
        head -= heads
        x = key + row * key_row + head * key_head
        out = key_out + (row * kv_heads + head) * 2 * HALF
        _turn(x, cos + row * 2 * HALF, sin + row * 2 * HALF, out, HALF, BLOCK)


@triton.jit
def _turn(x, cos, sin, out, HALF: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    mask = at < HALF
    dtype = out.dtype.element_ty
    first = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x + HALF + at, mask=mask, other=0.0).to(tl.float32)
    straight = (first * tl.load(cos + at, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
    turned = (-second * tl.load(sin + at, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
    tl.store(out + at, (straight + turned).to(dtype), mask=mask)
    straight = (
        (second * tl.load(cos + HALF + at, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
    )
    turned = (first * tl.load(sin + HALF + at, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
    tl.store(out + HALF + at, (straight + turned).to(dtype), mask=mask)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompts: tuple[Tensor, Tensor],
    completions: tuple[Tensor, Tensor],
    *,
    slot: Tensor,
    length: Tensor,
    position: Tensor,
    group_size: int,
    scaling: float,
) -> Tensor:
    """Attention of one new token per row over its prompt, its completion and itself; its key and value are written.

    Args:
        query: ``[R, heads, 1, D]``.
        key, value: of the new token, ``[R, K, 1, D]``.
        prompts: keys and values, ``[P, K, L, D]``, each prompt at the end of its line.
        completions: keys and values, ``[at least R, K, room, D]``, of which ``position`` tokens are written.
        slot: of each row its place among prompts times group, ``[R]``.
        length: tokens of each place's prompt, ``[P * group]``.
        position: tokens of the completions so far, ``[1]``.
        group_size: rows of a prompt.
        scaling: multiplies the scores.

    Returns:
        ``[R, 1, heads, D]``.
    """
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    rows, heads, _, width = query.shape
    kv_heads, longest = prompts[0].shape[1:3]
    room = completions[0].shape[2]
    repeat = heads // kv_heads
    splits = _splits(rows * kv_heads, longest + room, query.device)
    out = torch.empty(rows, 1, heads, width, dtype=query.dtype, device=query.device)
    parts = torch.empty((rows, heads, splits, width + 2) if splits > 1 else 1, device=query.device)
    _attend[(rows, kv_heads, splits)](
        query, query.stride(0), query.stride(1), key, key.stride(0), key.stride(1), value, value.stride(0),
        value.stride(1), *prompts, *completions, slot, length, position, out, parts, group_size, longest, room,
        scaling, KV_HEADS=kv_heads, REPEAT=repeat, WIDTH=width, SPLITS=splits, BLOCK=BLOCK,
        HEADS_BLOCK=max(16, triton.next_power_of_2(repeat)), WIDTH_BLOCK=max(16, triton.next_power_of_2(width)),
    )  # fmt: skip
    if splits > 1:
        _join[(rows, heads)](
            parts, out, WIDTH=width, WIDTH_BLOCK=triton.next_power_of_2(width), SPLITS=splits
        )
    return out


def _splits(programs: int, tokens: int, device: torch.device) -> int:
    """Parts that the tokens of a row are shared out to, a power of two."""
    processors = 16
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    parts = min(PER_PROCESSOR * processors // programs, tokens // PIECE)
    return 1 << (max(parts, 1).bit_length() - 1)


@triton.jit
def _look(  # type: ignore[no-untyped-def]
    q, keys, values, at, seen, d, wide, scaling, top, total, sums, WIDTH: tl.constexpr,
):  # fmt: skip
    """Some tokens into the running maximum, mass and weighted sum of values of each head."""
    mask = seen[:, None] & wide[None, :]
    k = tl.load(keys + at[:, None] * WIDTH + d[None, :], mask=mask, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
    scores = tl.where(seen[None, :], scores, FLOOR)
    higher = tl.maximum(top, tl.max(scores, axis=1))
    moved = tl.exp(top - higher)
    weight = tl.where(seen[None, :], tl.exp(scores - higher[:, None]), 0.0)
    v = tl.load(values + at[:, None] * WIDTH + d[None, :], mask=mask, other=0.0)
    sums = sums * moved[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
    return higher, total * moved + tl.sum(weight, axis=1), sums


@triton.jit
def _look_at_itself(q, k, v, scaling, top, total, sums):  # type: ignore[no-untyped-def]
    """The new token, likewise; it is at hand."""
    score = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], axis=1) * scaling
    higher = tl.maximum(top, score)
    moved, weight = tl.exp(top - higher), tl.exp(score - higher)
    sums = sums * moved[:, None] + weight[:, None] * v.to(tl.float32)[None, :]
    return higher, total * moved + weight, sums


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, query_row, query_head, key, key_row, key_head, value, value_row, value_head, prompt_keys, prompt_values,
    keys, values, slot, length, position, out, parts, group_size, longest, room, scaling,
    KV_HEADS: tl.constexpr, REPEAT: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr, WIDTH_BLOCK: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    place = tl.load(slot + row)
    first = longest - tl.load(length + place).to(tl.int32)
    now = tl.load(position).to(tl.int32)
    h, d, ahead = tl.arange(0, HEADS_BLOCK), tl.arange(0, WIDTH_BLOCK), tl.arange(0, BLOCK)
    wide = d < WIDTH
    own = h < REPEAT
    at = query + row * query_row + (head * REPEAT + h)[:, None] * query_head + d[None, :]
    q = tl.load(at, mask=own[:, None] & wide[None, :], other=0.0)
    top = tl.full([HEADS_BLOCK], FLOOR, tl.float32)
    total = tl.full([HEADS_BLOCK], 0.0, tl.float32)
    sums = tl.full([HEADS_BLOCK, WIDTH_BLOCK], 0.0, tl.float32)

    line = ((place // group_size) * KV_HEADS + head) * longest * WIDTH
    for start in range((first // BLOCK + split) * BLOCK, longest, SPLITS * BLOCK):
        token = start + ahead
        seen = (token >= first) & (token < longest)
        top, total, sums = _look(
            q, prompt_keys + line, prompt_values + line, token, seen, d, wide, scaling, top, total, sums, WIDTH
        )  # fmt: skip
    line = (row * KV_HEADS + head) * room * WIDTH
    for start in range(split * BLOCK, now, SPLITS * BLOCK):
        token = start + ahead
        top, total, sums = _look(
            q, keys + line, values + line, token, token < now, d, wide, scaling, top, total, sums, WIDTH
        )
    if split == 0:
        k = tl.load(key + row * key_row + head * key_head + d, mask=wide, other=0.0)
        v = tl.load(value + row * value_row + head * value_head + d, mask=wide, other=0.0)
        tl.store(keys + line + now * WIDTH + d, k, mask=wide)
        tl.store(values + line + now * WIDTH + d, v, mask=wide)
        top, total, sums = _look_at_itself(q, k, v, scaling, top, total, sums)
    heads = row * KV_HEADS * REPEAT + head * REPEAT + h
    mask = own[:, None] & wide[None, :]
    if SPLITS == 1:
        sums = sums / total[:, None]
        tl.store(out + heads[:, None] * WIDTH + d[None, :], sums.to(out.dtype.element_ty), mask=mask)
    else:
        part = parts + (heads * SPLITS + split) * (WIDTH + 2)
        tl.store(part[:, None] + d[None, :], sums, mask=mask)
        tl.store(part + WIDTH, top, mask=own)
        tl.store(part + WIDTH + 1, total, mask=own)


@triton.jit
def _join(parts, out, WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, SPLITS: tl.constexpr):  # type: ignore
    """The parts of a row and head into one softmax."""
    head = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    split, d = tl.arange(0, SPLITS), tl.arange(0, WIDTH_BLOCK)
    part = parts + (head * SPLITS + split) * (WIDTH + 2)
    top = tl.load(part + WIDTH)
    weight = tl.exp(top - tl.max(top, axis=0))
    total = tl.sum(weight * tl.load(part + WIDTH + 1), axis=0)
    sums = tl.load(part[:, None] + d[None, :], mask=(d < WIDTH)[None, :], other=0.0)
    value = tl.sum(weight[:, None] * sums, axis=0) / total
    tl.store(out + head * WIDTH + d, value.to(out.dtype.element_ty), mask=d < WIDTH)


def draw(logits: Tensor, uniform: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """A token of each row, ``[R]`` int64, and numbers ``[R, 5]``: those of ``Sampled``, and the largest logit.

    The distribution is not truncated; see :func:`klent.rollout.sampling.draw`, whose numbers these are.

    Args:
        logits: ``[R, V]``.
        uniform: ``[R]``.
        temperature: above 0, a tensor without dimensions.
    """
    rows, size = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    words = min(WORDS, triton.next_power_of_2(size))
    blocks = triton.cdiv(size, words)
    parts = torch.empty(rows, blocks, 5, device=logits.device)
    token = torch.empty(rows, dtype=torch.int64, device=logits.device)
    numbers = torch.empty(rows, 5, device=logits.device)
    warps = min(max(words // 512, 1), 8)
    _weigh[(rows, blocks)](
        logits, logits.stride(0), temperature, parts, size, blocks, WORDS=words, num_warps=warps
    )
    _pick[(rows,)](
        logits, logits.stride(0), uniform, temperature, parts, token, numbers, size, blocks,
        WORDS=words, BLOCKS=triton.next_power_of_2(blocks), num_warps=warps,
    )  # fmt: skip
    return token, numbers


@triton.jit
def _weigh(logits, stride, temperature, parts, size, blocks, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a piece of a row: the largest logit m, then sums over w = exp(z - m): w, w·log w, w², w²·log w."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * WORDS + tl.arange(0, WORDS)
    mask = at < size
    z = tl.load(logits + row * stride + at, mask=mask, other=float("-inf")).to(tl.float32)
    z /= tl.load(temperature)
    top = tl.maximum(tl.max(z, axis=0), FLOOR)
    x = z - top
    weight = tl.exp(x)
    log = tl.where(x < -1e4, -1e4, x)  # 0 · -inf is NaN; a maximum would hide NaN
    part = parts + (row * blocks + block) * 5
    tl.store(part, top)
    tl.store(part + 1, tl.sum(weight, axis=0))
    tl.store(part + 2, tl.sum(weight * log, axis=0))
    tl.store(part + 3, tl.sum(weight * weight, axis=0))
    tl.store(part + 4, tl.sum(weight * weight * log, axis=0))


@triton.jit
def _first_above(mass, level, INFINITY: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first index whose cumulative mass is above the level, of those that have mass; the last of them if none."""
    index = tl.arange(0, mass.shape[0])
    above = (tl.cumsum(mass, axis=0) > level) & (mass > 0)
    first = tl.min(tl.where(above, index, INFINITY), axis=0)
    last = tl.max(tl.where(mass > 0, index, 0), axis=0)
    return tl.where(first == INFINITY, last, first)


@triton.jit
def _pick(  # type: ignore[no-untyped-def]
    logits, stride, uniform, temperature, parts, tokens, numbers, size, blocks,
    WORDS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """First the piece that the uniform number falls into, then the token in it."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    mask = block < blocks
    part = parts + (row * blocks + block) * 5
    m = tl.load(part, mask=mask, other=FLOOR)
    top = tl.max(m, axis=0)
    shift = tl.where(mask, m - top, -1e4)
    moved = tl.exp(shift)
    shift = tl.where(shift < -1e4, -1e4, shift)
    w, u = tl.load(part + 1, mask=mask, other=0.0), tl.load(part + 2, mask=mask, other=0.0)
    w2, u2 = tl.load(part + 3, mask=mask, other=0.0), tl.load(part + 4, mask=mask, other=0.0)
    mass = w * moved
    total = tl.sum(mass, axis=0)
    mean = tl.sum((u + w * shift) * moved, axis=0) / total
    square = tl.sum(w2 * moved * moved, axis=0)
    squared = tl.sum((u2 + w2 * shift) * moved * moved, axis=0)
    level = tl.load(uniform + row) * total
    chosen = _first_above(mass, level, 1 << 30)
    level -= tl.sum(tl.where(block < chosen, mass, 0.0), axis=0)

    heat = tl.load(temperature)
    at = chosen * WORDS + tl.arange(0, WORDS)
    z = tl.load(logits + row * stride + at, mask=at < size, other=float("-inf")).to(tl.float32) / heat
    token = chosen * WORDS + _first_above(tl.exp(z - top), level, 1 << 30)
    token = tl.minimum(token, size - 1)
    log_total = tl.log(total)
    logp = tl.load(logits + row * stride + token).to(tl.float32) / heat - top - log_total
    renyi = 2 * log_total - tl.log(square)
    collision_logp = squared / (total * total) - tl.exp(-renyi) * log_total
    tl.store(tokens + row, token.to(tl.int64))
    out = numbers + row * 5
    tl.store(out, logp)
    tl.store(out + 1, tl.where(log_total - mean < 0, 0.0, log_total - mean))
    tl.store(out + 2, tl.where(renyi < 0, 0.0, renyi))
    tl.store(out + 3, tl.where(collision_logp > 0, 0.0, collision_logp))
    broken = (total != total) | (top <= FLOOR)
    tl.store(out + 4, tl.where(broken, float("nan"), top))
