"""Estimators of the gradient of the sequence KL, from samples of an older policy."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import ROUNDING, SEEDS, Claim, Figure, Figures, Judgement, number, over_seeds, ratio
from klent.claims.sources import AMINI_KL, COMEDY
from klent.claims.worlds.chain import Sample, Trio, drawn, every, row_kl, sequence_kl, trio

#: χ²(policy ‖ sampler) per token; 0 is on-policy
_STALENESS = (0.0, 0.01, 0.1, 0.3)
#: sequence lengths that are enumerated, with 3 symbols; and one that is sampled, with 20
_ENUMERATED, _SAMPLED = (3, 9), 24
_SYMBOLS, _SYMBOLS_SAMPLED = 3, 20
#: those shown estimator by estimator; the break-even is shown for all
_SHOWN = (0.0, 0.1)
_GROUP, _GROUPS, _BOUND = 8, 250, 2.0
_BATCH = 256  # sequences; more than a batch usually has is more than exactness is worth

_FROZEN = "exact KL per token, prefixes frozen"
_CENTRED = "exact KL, prefix ratio, leave-one-out"
_PLAIN = "exact KL, prefix ratio"
_K1 = "k1 to go, ratio per decision"
_BOUNDED = f"{_CENTRED}, ratio at most {_BOUND:g}"
_BASED = "exact KL, prefix ratio, expected future as baseline"
_CRITIC = "exact KL, prefix ratio, future from a perfect critic"


class Numbers(NamedTuple):
    """What an estimator reads of each sampled token, ``[N, T]``.

    A perfect critic knows ``future`` and ``after``: the expected divergence of the tokens after each, given what
    stands before it, and given it too.
    """

    logp: Tensor
    logp_ref: Tensor
    logp_gen: Tensor
    kl: Tensor
    future: Tensor
    after: Tensor
    mask: Tensor
    group: Tensor


def _whole(n: Numbers) -> Tensor:
    ratio = (n.logp - n.logp_gen).detach().sum(1, keepdim=True).exp()
    return ratio * (n.logp - n.logp_ref).detach().sum(1, keepdim=True) * n.logp


def _per_decision(n: Numbers) -> Tensor:
    ratio = (n.logp - n.logp_gen).detach().cumsum(1).exp()
    return _to_go(ratio * (n.logp - n.logp_ref).detach()) * n.logp


def _token_ratio(n: Numbers) -> Tensor:
    ratio = (n.logp - n.logp_gen).detach().exp()
    return ratio * _to_go((n.logp - n.logp_ref).detach()) * n.logp


def _to_go(values: Tensor) -> Tensor:
    return values.flip(1).cumsum(1).flip(1)


def _in_loss(n: Numbers, divergence: Literal["reverse", "forward"]) -> Tensor:
    return O.kl_in_loss(n.logp, n.logp_ref, n.mask, coef=1.0, divergence=divergence, logp_old=n.logp_gen).loss


def _sequence(
    n: Numbers,
    group: Tensor | None = None,
    baseline: Tensor | None = None,
    weight_max: float | None = None,
) -> Tensor:
    return O.sequence_kl_loss(
        n.logp,
        n.kl,
        n.mask,
        coef=1.0,
        logp_gen=n.logp_gen,
        group=group,
        baseline=baseline,
        weight_max=weight_max,
    ).loss


def _critic(n: Numbers) -> Tensor:
    """What a token leads to is looked up, not sampled: no ratio of the tokens after it is needed."""
    after = (n.logp - n.logp_gen).detach().cumsum(1).exp()
    before = after * (n.logp_gen - n.logp).detach().exp()
    return before * n.kl + after * (n.after - n.future) * n.logp


#: estimator -> loss per token; "frozen" prefixes are taken as given
_LOSSES: dict[str, Callable[[Numbers], Tensor]] = {
    "k1, ratio of the whole sequence": _whole,
    _K1: _per_decision,
    "k1 to go, the token's ratio": _token_ratio,
    "k2, or k3 with a differentiated ratio, the token's ratio": lambda n: _in_loss(n, "reverse"),
    "k3, the token's ratio as a constant": lambda n: _in_loss(n, "forward"),
    _FROZEN: lambda n: n.kl,
    _PLAIN: _sequence,
    _CENTRED: lambda n: _sequence(n, group=n.group),
    _BASED: lambda n: _sequence(n, baseline=n.future),
    _CRITIC: _critic,
    f"{_PLAIN} at most {_BOUND:g}": lambda n: _sequence(n, weight_max=_BOUND),
    _BOUNDED: lambda n: _sequence(n, group=n.group, weight_max=_BOUND),
}
_EXACT = ("k1, ratio of the whole sequence", _K1, _PLAIN, _BASED, _CRITIC)
_GROUPED = (_CENTRED, _BOUNDED)
_BIASED = tuple(name for name in _LOSSES if name not in (*_EXACT, *_GROUPED))


class Error(NamedTuple):
    """Of one sampled sequence's gradient, in lengths of the true gradient."""

    bias: float
    noise: float


#: (length, χ² per token, estimator) -> errors, one for each world
Errors = dict[tuple[int, float, str], list[Error]]


def measure() -> dict[str, Figure]:
    errors = _errors()
    figures: dict[str, Figure] = {}
    for length in (9, _SAMPLED):
        for chi2 in _SHOWN:
            for name in _LOSSES:
                found = errors[length, chi2, name]
                figures[_name("noise", length, chi2, name)] = over_seeds([e.noise for e in found])
                if (name in _BIASED and length != _SAMPLED) or name == _FROZEN:
                    figures[_name("bias", length, chi2, name)] = over_seeds([e.bias for e in found])
    exact = [e.bias for (n, _, name), es in errors.items() if n != _SAMPLED and name in _EXACT for e in es]
    figures["largest bias of the exact ones, enumerated"] = Figure(max(exact))
    for length in (*_ENUMERATED, _SAMPLED):
        for chi2 in _STALENESS:
            for name in (_CENTRED, _CRITIC) if length == _SAMPLED else (_CENTRED,):
                pairs = list(zip(errors[length, chi2, name], errors[length, chi2, _FROZEN], strict=True))
                more = [max(exact.noise**2 - frozen.noise**2, 0.0) for exact, frozen in pairs]
                off = [frozen.bias**2 for _, frozen in pairs]
                figures[_break_even(length, chi2, name)] = ratio(more, off)
    return figures


def _name(what: str, length: int, chi2: float, estimator: str) -> str:
    return f"{what}, {length} tokens, χ² {chi2:g}: {estimator}{' (control)' if chi2 == 0 else ''}"


def _break_even(length: int, chi2: float, name: str = _CENTRED) -> str:
    """Where the mean squared errors of a batch's mean are equal: more variance, divided by squared bias."""
    which, control = name.rpartition(", ")[2], " (control)" if chi2 == 0 else ""
    return f"sequences that beat frozen prefixes, {length} tokens, χ² {chi2:g}: {which}{control}"


def _errors() -> Errors:
    found: Errors = {}
    for length in (*_ENUMERATED, _SAMPLED):
        symbols = _SYMBOLS if length in _ENUMERATED else _SYMBOLS_SAMPLED
        for chi2 in _STALENESS:
            for seed in SEEDS:
                for name, error in _of_world(trio(seed, symbols, length, chi2), length, seed).items():
                    found.setdefault((length, chi2, name), []).append(error)
    return found


def _of_world(world: Trio, length: int, seed: int) -> dict[str, Error]:
    logits = world.policy.detach().requires_grad_()
    true = torch.autograd.grad(sequence_kl(logits, world.reference, length), logits)[0].flatten()
    generator = torch.Generator().manual_seed(seed)
    groups = drawn(world.sampler, length, _GROUPS * _GROUP, generator)
    whole = every(world.sampler, length) if length in _ENUMERATED else groups
    seen = {grouped: _numbers(world, sample) for grouped, sample in ((False, whole), (True, groups))}
    errors = {}
    for name, loss in _LOSSES.items():
        grouped = name in _GROUPED
        sample = groups if grouped else whole
        errors[name] = _error(_gradients(loss, world, sample, seen[grouped]), sample, true, grouped)
    return errors


def _error(each: Tensor, sample: Sample, true: Tensor, grouped: bool) -> Error:
    """Bias and noise; of sampled sequences, the part of the squared bias that is noise is taken off."""
    chance, size = sample.chance, 1
    if grouped:  # a group is one draw: rows lean on each other
        each, size = each.view(-1, _GROUP, each.shape[1]).mean(1), _GROUP
        chance = torch.full((len(each),), 1 / len(each), dtype=each.dtype)
    mean = chance @ each
    variance = float(chance @ (each - mean).square().sum(1))
    off = float((mean - true).square().sum())
    if bool((chance == chance[0]).all()):
        off = max(off - variance / len(each), 0.0)
    scale = float(true.square().sum())
    return Error((off / scale) ** 0.5, (variance * size / scale) ** 0.5)


def _gradients(loss: Callable[[Numbers], Tensor], world: Trio, sample: Sample, numbers: Numbers) -> Tensor:
    """Gradient of each sequence's loss in the policy's logits, ``[N, (S + 1)·S]``: by the chain rule, row by row."""
    log_p, log_ref = world.policy.log_softmax(-1), world.reference.log_softmax(-1)
    total = loss(numbers).sum()
    slopes = torch.autograd.grad(total, (numbers.logp, numbers.kl), allow_unused=True)
    in_logp, in_kl = (torch.zeros_like(numbers.logp) if s is None else s for s in slopes)
    count, (rows, symbols) = len(sample.tokens), log_p.shape
    pushed = torch.zeros(count, rows * symbols, dtype=log_p.dtype)
    pushed.scatter_add_(1, sample.rows * symbols + sample.tokens, in_logp)
    kl_slope = log_p.exp() * (log_p - log_ref - row_kl(world.policy, world.reference).unsqueeze(1))
    by_row = torch.zeros(2, count, rows, dtype=log_p.dtype)
    by_row[0].scatter_add_(1, sample.rows, in_logp)
    by_row[1].scatter_add_(1, sample.rows, in_kl)
    spread = by_row[1].unsqueeze(2) * kl_slope - by_row[0].unsqueeze(2) * log_p.exp()
    return pushed + spread.flatten(1)


def _numbers(world: Trio, sample: Sample) -> Numbers:
    tokens, rows = sample.tokens, sample.rows
    logp, logp_ref, logp_gen = (logits.log_softmax(-1)[rows, tokens] for logits in world)
    of_row, p = row_kl(world.policy, world.reference), world.policy.softmax(-1)
    ahead = torch.zeros_like(of_row)  # expected divergence from a position on, given its row
    future, after = torch.zeros(2, *tokens.shape, dtype=p.dtype)
    for t in reversed(range(tokens.shape[1])):
        future[:, t], after[:, t] = (p @ ahead[1:])[rows[:, t]], ahead[tokens[:, t] + 1]
        ahead = of_row + p @ ahead[1:]
    return Numbers(
        logp.detach().requires_grad_(),
        logp_ref,
        logp_gen,
        of_row[rows].requires_grad_(),
        future,
        after,
        torch.ones_like(tokens, dtype=torch.bool),
        torch.arange(len(tokens)) // _GROUP,
    )


def judge(f: Figures) -> Judgement:
    noise = {name: f[_name("noise", 9, 0.1, name)].value for name in (_PLAIN, _K1)}
    largest = f["largest bias of the exact ones, enumerated"].value
    if largest > ROUNDING or noise[_PLAIN] >= noise[_K1]:
        return (
            "refuted",
            f"its bias is {number(largest)}, its noise {number(noise[_PLAIN])}, k1's {number(noise[_K1])}",
        )
    unbiased = (
        f"enumerated, its bias is {number(largest)} on- and off-policy, and at 9 tokens and χ² 0.1 its noise is "
        f"{number(noise[_PLAIN])} lengths of the gradient, that of k1 per decision {number(noise[_K1])}"
    )
    needed = {(n, c): f[_break_even(n, c)] for n in (9, _SAMPLED) for c in _STALENESS}
    if all(figure.value < _BATCH for figure in needed.values()):
        return "holds", unbiased
    long = {
        name: [f[_name("noise", _SAMPLED, chi2, name)].value for chi2 in _SHOWN]
        for name in (_PLAIN, _CENTRED, _BOUNDED, _CRITIC, _FROZEN)
    }
    short, many = ([number(needed[n, c].value) for c in _STALENESS] for n in (9, _SAMPLED))
    with_critic = [number(f[_break_even(_SAMPLED, c, _CRITIC)].value) for c in _STALENESS]
    staleness = ", ".join(f"{c:g}" for c in _STALENESS)
    lost = f[_name("bias", _SAMPLED, 0.0, _FROZEN)].value
    return "holds when", (
        f"staleness times length is small: {unbiased}. Against what it replaces, exact KL per token with "
        "frozen prefixes, it has to win with more noise: the tokens to come outweigh the token's own. At 24 "
        f"tokens that is {number(long[_PLAIN][0])} on-policy, and {number(long[_CENTRED][0])} with a "
        f"leave-one-out baseline, for {number(long[_FROZEN][0])} and a bias of {number(lost)}; at χ² 0.1 the "
        f"baseline leaves {number(long[_CENTRED][1])} (with the ratio held at 2 {number(long[_BOUNDED][1])}); a "
        "perfect critic, which looks the future up and needs no ratio of later tokens, has "
        f"{number(long[_CRITIC][1])}. Leave-one-out is the nearer one in batches from {', '.join(short)} "
        f"sequences on at 9 tokens, {', '.join(many)} at 24 (χ² per token {staleness}): beyond some {_BATCH} "
        f"exactness does not pay. With a perfect critic it is {', '.join(with_critic)} at 24"
    )


CLAIM = Claim(
    id="sequence-kl-estimators",
    subject="kl",
    statement="From samples of an older policy too, the gradient of the reverse KL between whole sequences "
    "has an unbiased estimate, with the exact KL of each next token and the ratio of its prefix, and with "
    "less noise than sampled log-ratios give: it is the one to train with.",
    source=f"the estimate on-policy: {AMINI_KL}; off-policy it is left open: {COMEDY}, section 3",
    experiment="bias and noise of one sequence's gradient, in lengths of the true gradient, in 5 random "
    "worlds; all sequences of 3 and 9 tokens over 3 symbols enumerated (groups of 8 sampled), and 2000 of 24 "
    "tokens over 20 symbols sampled, against the exact gradient; a sampler at χ² from 0 to 0.3 per token",
    control="on-policy sampling; exact KL per token with the prefixes taken as given, and how many sequences "
    "a batch must have before no bias beats less noise",
    measure=measure,
    judge=judge,
)
