"""The head with its vocabulary divided over ranks: each holds some rows of the output embedding.

Rank ``r`` sweeps its own tokens, and has for each row the largest of its logits ``m_r`` (in bits) and the sums of
:mod:`klent.head.chunked` relative to it. With ``d_r = m_r - m`` and the largest of all, ``m``,

    s = sum_r 2^d_r s_r                 u = sum_r 2^d_r (u_r + d_r s_r)
    s2 = sum_r 4^d_r s2_r               u2 = sum_r 4^d_r (u2_r + d_r s2_r)

so that ranks exchange four to six numbers per row and no logits. The backward pass gives each rank the gradient of
its own rows of the weight, and adds up what the ranks find for the hidden states.
"""

import torch
from torch import Tensor

from klent.head.autograd import Gradients, Kept, Kernels, Rows, Sums, Wanted, fused_token_stats
from klent.head.checks import check_inputs, check_transform
from klent.head.chunked import CHUNKED
from klent.head.stats import Head, LogitTransform, TokenStats
from klent.kit.world import World


class DividedVocabulary:
    """A vocabulary of which each rank holds consecutive tokens, rank by rank; some may hold more than others.

    Args:
        world: the ranks; all of them make one.
        held: how many tokens this rank holds; 0 is allowed.

    Attributes:
        first: the first of them.
        size: of the whole vocabulary.
    """

    def __init__(self, world: World, held: int) -> None:
        sizes = [int(said) for said in world.gather(str(held).encode())]
        self.world = world
        self.held = held
        self.first = sum(sizes[: world.rank])
        self.size = sum(sizes)

    def token_stats(
        self,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        *,
        temperature: float = 1.0,
        scale: float = 1.0,
        softcap: float | None = None,
        entropy: bool = True,
        collision: bool = False,
        keep_bytes: int = 0,
    ) -> TokenStats:
        """:func:`klent.token_stats` of the whole vocabulary; every rank must call it, and its backward.

        Args:
            hidden: last hidden states, ``[..., H]``, the same on every rank. Receives the whole gradient on each.
            weight: this rank's rows of the output embedding, ``[held, H]``. Receives its own gradient.
            target: in ``[0, size)``, ``[...]`` int64, the same on every rank.
            temperature, scale, softcap, entropy, collision, keep_bytes: as of :func:`klent.token_stats`.

        Returns:
            The same on every rank, in the shape of ``target``. The loss must be computed from it alike on every rank:
            ranks do not add up what they make of it.

        Raises:
            ValueError: ``weight`` has other rows than ``held``, or as of :func:`klent.token_stats`.
            TypeError: as of :func:`klent.token_stats`.

        Note:
            There is no bias. The sums over the vocabulary are added up in another order than by one rank: equal up
            to rounding. On a GPU too this takes the tiles of :mod:`klent.head.chunked` and not Triton's kernels.
        """
        if len(weight) != self.held:
            raise ValueError(f"weight must have the {self.held} rows that this rank holds, got {len(weight)}")
        check_inputs(hidden, weight, target, vocabulary=self.size)
        transform = LogitTransform(temperature, scale, softcap)
        check_transform(transform)
        head = Head(hidden.reshape(-1, hidden.shape[-1]), weight, None, transform)
        kernels = Kernels(self._sweep, self._gradients)
        stats = fused_token_stats(kernels, head, target.reshape(-1), entropy, collision, keep_bytes)
        numbers = (stats.logp, stats.entropy, stats.collision, stats.collision_logp)
        logp, *others = (None if x is None else x.view(target.shape) for x in numbers)
        assert logp is not None
        return TokenStats(logp, *others)

    def _sweep(self, head: Head, target: Tensor, entropy: bool, collision: bool, keep: int) -> Sums:
        own = CHUNKED.sweep(head, target - self.first, entropy, collision, keep)
        squares = () if own.s2 is None or own.u2 is None else (own.s2, own.u2)
        mine = torch.stack([own.m, own.s, own.u, own.at_target, *squares])
        every = mine.new_zeros(self.world.size, *mine.shape)
        every[self.world.rank] = mine
        m, s, u, at_target, *squared = self.world.sum(every).unbind(1)
        top = m.amax(0)
        shift = m - top
        factor = shift.exp2()
        total = Sums(
            top,
            (factor * s).sum(0),
            (factor * (u + s * shift)).sum(0),
            at_target.sum(0),  # 0 but on the rank that holds the target
            kept=own.kept,
        )
        if not squared:
            return total
        s2, u2 = squared
        factor = factor.square()
        return total._replace(s2=(factor * s2).sum(0), u2=(factor * (u2 + s2 * shift)).sum(0))

    def _gradients(self, head: Head, rows: Rows, wanted: Wanted, kept: Kept) -> Gradients:
        own = rows._replace(target=rows.target - self.first)
        dhidden, dweight, dbias = CHUNKED.gradients(head, own, wanted, kept)
        return None if dhidden is None else self.world.sum(dhidden), dweight, dbias
