"""A loss of pairs as a term of a step: two completions of a prompt go in, and its gradient lands on their tokens."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from klent.config.binding import sides_of
from klent.objectives.types import TokenLoss
from klent.streams.registry import Streams
from klent.training.term import Term

ROUNDING = 1e-4
"""Nats that two scores may differ by where the policy is its reference: the two are summed in another order."""


@dataclass(frozen=True)
class PairTerm(Term):
    """A function such as ``dpo``: a parameter ``logp_chosen`` takes the stream ``logp`` of the better answers.

    What the stream has per token is added up over a completion, unless the function reads the tokens' masks
    (``mask_chosen``) and so takes them one by one. ``length_chosen`` is the number of tokens.

    Attributes:
        sides: parameter -> its stream, and whether it is the better answer's.
        reports: whether its metrics are those of the step; of several losses of pairs the first one's are.
    """

    sides: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    reports: bool = True

    def __call__(self, streams: Streams, **supplied: object) -> Tensor:
        """The loss of each pair, ``[pairs]``."""
        own = self._own(streams)
        loss: Tensor = self.function(**self.arguments(streams), **supplied, **{**self.settings, **own})
        return loss

    def loss(self, streams: Streams) -> TokenLoss:
        """The same at the first token of each better answer, so that the sum over tokens is that over pairs.

        Metrics: what the policy, or the reward model, says of the two of a pair, and how often it is right.
        """
        mask = _present(streams, "mask")
        better, _ = rows_of_pairs(streams)
        first = mask[better].to(torch.uint8).argmax(dim=1)
        loss = self(streams)
        grid = torch.zeros(mask.shape, dtype=loss.dtype, device=mask.device)
        return TokenLoss(
            grid.index_put((better, first), loss), self._metrics(streams) if self.reports else {}
        )

    def _own(self, streams: Streams) -> dict[str, Tensor]:
        """The settings to which the data add a number of each pair."""
        margin = streams.pair_margin
        if margin is None or "margin" not in self.settings:
            return {}
        better, _ = rows_of_pairs(streams)
        return {"margin": margin[better] + self.settings["margin"]}

    def arguments(self, streams: Streams) -> dict[str, Tensor]:
        """What the function is called with, by the names of its parameters."""
        rows = dict(zip((True, False), rows_of_pairs(streams), strict=True))
        whole = "mask_chosen" in self.sides
        mask = _present(streams, "mask")
        given = {}
        for name, (stream, better) in self.sides.items():
            values = _present(streams, stream)
            if values.ndim == 2 and not whole:
                values = torch.where(mask, values.to(torch.float32), 0.0).sum(dim=1)
            given[name] = values[rows[better]]
        return given

    @torch.no_grad()
    def scores(self, streams: Streams) -> Tensor:
        """What the loss compares of each completion, ``[B]``, no gradient.

        Of a reward model its score; else the log-probability of the completion, less the reference's where the
        loss reads it, and per token where the loss reads lengths.
        """
        if "score" in self.streams:
            return _present(streams, "score").detach()
        mask, logp = _present(streams, "mask"), _present(streams, "logp").detach()
        start = streams.logp_ref if "logp_ref" in self.streams else None
        total = torch.where(mask, logp if start is None else logp - start, 0.0).sum(dim=1)
        return total / mask.sum(dim=1).clamp(min=1) if self.per_token else total

    @property
    def per_token(self) -> bool:
        """Whether it compares means over tokens instead of sums."""
        return "length_chosen" in self.sides

    def _metrics(self, streams: Streams) -> dict[str, tuple[Tensor, Tensor]]:
        """``accuracy``, ``margin``, ``chosen`` and ``rejected``: of :meth:`scores`."""
        score = self.scores(streams)
        better, worse = (score[rows].double() for rows in rows_of_pairs(streams))
        count = torch.tensor(float(len(better)), device=better.device)
        values = {
            "preference/accuracy": is_right(better, worse),
            "preference/margin": better - worse,
            "preference/chosen": better,
            "preference/rejected": worse,
        }
        return {name: (value.sum(), count) for name, value in values.items()}


def is_right(better: Tensor, worse: Tensor) -> Tensor:
    """1 for each pair whose better answer scores higher, 1/2 where both score the same up to rounding."""
    gap = better - worse
    return (gap > ROUNDING).double() + 0.5 * (gap.abs() <= ROUNDING).double()


def with_pairs(terms: Iterable[Term]) -> list[Term]:
    """The terms, those of pairs where their function is a loss of pairs."""
    made: list[Term] = []
    for term in terms:
        if sides := sides_of(term.function, term.settings):
            first = not any(isinstance(other, PairTerm) for other in made)
            term = PairTerm.made_of(term, sides=sides, reports=first)
        made.append(term)
    return made


def rows_of_pairs(streams: Streams) -> tuple[Tensor, Tensor]:
    """The better and the worse of each pair as indices of rows, pair by pair.

    Raises:
        ValueError: rows that are no pairs.
    """
    preferred, group = _present(streams, "preferred"), _present(streams, "group")
    better, worse = preferred.nonzero()[:, 0], (~preferred).nonzero()[:, 0]
    better, worse = better[group[better].argsort(stable=True)], worse[group[worse].argsort(stable=True)]
    if len(better) != len(worse) or not torch.equal(group[better], group[worse]):
        raise ValueError(
            "a loss of pairs needs the two completions of each prompt together, one of them preferred"
        )
    return better, worse


def _present(streams: Streams, name: str) -> Tensor:
    value = streams.get(name)
    if value is None:
        raise KeyError(f"this step has no {name}")
    return value
