"""The policy as the trainer sees it: packed rows in, per-token log-probability and entropy out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from klent.head import TokenStats, token_stats
from klent.head.compared import comparable, token_stats_and_kl
from klent.head.reference import full_logit_stats
from klent.head.stats import Head, LogitTransform
from klent.policies.causal_lm.beside import BESIDE, beside
from klent.policies.causal_lm.critic import OF_CRITIC, Critic
from klent.policies.causal_lm.forward import predicting_states
from klent.policies.causal_lm.model import CausalModel, recomputes
from klent.policies.causal_lm.packing import (
    Group,
    Pack,
    Packing,
    completions,
    join_groups,
    make_groups,
    make_microbatches,
    observations,
    pack,
    row_length,
)
from klent.policies.causal_lm.probe import head_options, require_rows
from klent.policies.causal_lm.teacher import Teacher
from klent.streams.batch import Batch, Stats


class CausalPolicy(nn.Module):
    """A causal language model whose last product is taken by the fused head; a :class:`klent.policies.Policy`.

    The model's body gives hidden states, only those that predict an action are kept, and
    :func:`klent.token_stats` turns them into numbers without ever holding their logits. A model that does
    more to its logits than one matrix product, a scale and a soft cap is found out by :func:`head_options`
    and then goes through its own head: slower, equally exact.

    Args:
        model: a transformers causal language model, or a peft model around one.
        temperature: the sampling temperature; log-probabilities and entropies are those of the sampled
            distribution.
        packing: how rows are laid out; the model decides what it allows, see :func:`takes_shared_prompt`.
        active: a context in which the model stands for this policy, such as one that switches adapters off.
        teachers: give the numbers that compare the policy with another distribution, by their streams' names.
        critic: gives the streams ``value`` and ``logit_second``; trained with the policy.
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        temperature: float,
        packing: Packing | None = None,
        active: Callable[[], AbstractContextManager[object]] = nullcontext,
        teachers: Mapping[str, Teacher] | None = None,
        critic: Critic | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.packing = packing or Packing()
        self.active = active
        self.teachers = dict(teachers or {})
        self.critic = critic
        self.keep_bytes = 0  # of logits that a forward pass leaves to its backward pass
        options = head_options(model)
        self.fused = options is not None
        self.head_options = options or {}
        self.takes_blocks = False
        require_rows(self)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that receive gradients: the model's by its own names, and the critic's."""
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if self.critic is not None:
            named |= {f"critic.{name}": p for name, p in self.critic.named_parameters() if p.requires_grad}
        return named

    def microbatches(self, batch: Batch, rows: Sequence[int]) -> list[list[int]]:
        """Rows of similar length together, within the packing's budget; see :class:`klent.policies.Policy`."""
        cut = make_microbatches(self._groups(batch, rows), budget=self.packing.budget)
        return [sorted(item.index for group in groups for item in group) for groups in cut]

    def evaluate(self, batch: Batch, rows: Sequence[int], *, also: Collection[str] = ()) -> Stats:
        """Pack, compute, and lay the numbers out on the grid; see :class:`klent.policies.Policy`."""
        groups, packed = self._packed(batch, rows)
        heard = self._heard(groups) if "logp_observed" in also else None
        with self.active():
            states, of_heard = self._states(packed, heard)
            of_critic = states
            critic = self.critic if OF_CRITIC & set(also) else None
            if critic is not None:
                states, of_critic = critic.parted(states)
            against = {name: teacher for name, teacher in self.teachers.items() if name in also}
            others = {name: t.head(batch, groups) for name, t in against.items() if t.moved()}
            collision = "collision" in also or "collision_logp" in also
            numbers, apart = self._compare(states, packed, against, others, collision=collision)
        if critic is not None:
            apart |= critic.numbers(packed, of_critic, also)
        for name in also:
            if name in BESIDE:
                action = packed.target.to(states.device)
                apart[name] = beside(name, self.head(states), action, numbers.logp)
        assert numbers.entropy is not None
        place = torch.empty(len(batch), dtype=torch.long)
        place[list(rows)] = torch.arange(len(rows))
        device = numbers.logp.device

        def on_grid(values: Tensor, at: Pack = packed) -> Tensor:
            where = (place[at.row].to(device), at.column.to(device))
            grid = torch.zeros(len(rows), batch.mask.shape[1], device=device, dtype=values.dtype)
            return grid.index_put(where, values)

        of_observed = None
        if heard is not None:
            said = self.stats(of_heard, heard, entropy=False).logp if len(heard.target) else numbers.logp[:0]
            of_observed = on_grid(said, heard)
        return Stats(
            on_grid(numbers.logp),
            on_grid(numbers.entropy),
            **{name: on_grid(values) for name, values in apart.items()},
            logp_observed=of_observed,
            collision=None if numbers.collision is None else on_grid(numbers.collision),
            collision_logp=None if numbers.collision_logp is None else on_grid(numbers.collision_logp),
            tokens=packed.tokens,
            targets=len(packed.target),
        )

    def _heard(self, groups: list[Group]) -> Pack:
        """Where what was said between actions stands, in the rows that hold the actions."""
        return pack(observations(groups), shared=self.packing.shared)

    def _states(self, packed: Pack, heard: Pack | None) -> tuple[Tensor, Tensor]:
        """What predicts the actions, and what predicts the tokens heard between them, of one forward pass."""
        if heard is None:
            states = self.states(packed)
            return states, states[:0]
        sources = [packed.source, heard.source]
        both = self.states(replace(packed, source=torch.cat(sources)))
        ours, theirs = both.split([len(source) for source in sources])
        return ours, theirs

    def _compare(
        self,
        states: Tensor,
        rows: Pack,
        against: Mapping[str, Teacher],
        others: Mapping[str, Head],
        *,
        collision: bool,
    ) -> tuple[TokenStats, dict[str, Tensor]]:
        """The policy's own numbers and those against other models; a reverse KL shares the policy's products."""
        apart = {
            name: torch.zeros(len(states), device=states.device) for name in against if name not in others
        }
        numbers = None
        for name, other in others.items():
            policy, teacher = self.head(states), against[name]
            shares = name == "kl" and teacher.plain and not collision
            if shares and comparable(policy, other):
                logp, entropy, apart[name] = token_stats_and_kl(policy, rows.target.to(states.device), other)
                numbers = TokenStats(logp, entropy)
            else:
                apart[name] = teacher.divergence(policy, other)
        return numbers or self.stats(states, rows, collision=collision), apart

    def predictions(self, batch: Batch, rows: Sequence[int]) -> tuple[Pack, Head]:
        """Where the actions of these episodes stand, and what predicts each of them."""
        _, packed = self._packed(batch, rows)
        with self.active():
            return packed, self.head(self.states(packed))

    def _packed(self, batch: Batch, rows: Sequence[int]) -> tuple[list[Group], Pack]:
        groups = sorted(self._groups(batch, rows), key=row_length, reverse=True)
        return groups, pack(groups, shared=self.packing.shared)

    def _groups(self, batch: Batch, rows: Sequence[int]) -> list[Group]:
        packing = self.packing
        groups = make_groups(completions(batch, rows), shared=packing.shared, budget=packing.budget)
        return join_groups(groups, longest=self._longest_joined(batch)) if packing.joined else groups

    def _longest_joined(self, batch: Batch) -> int:
        """Under one mask a row costs the square of its length, and no longer one is built than the step has anyway.

        A number of the whole step and not of some rows: a micro-batch is laid out as it was cut.
        """
        if self._in_blocks:
            return self.packing.joined
        own = max(len(e.prompt_ids) + len(e.tokens) - 1 for e in batch.episodes)
        return min(self.packing.joined, own)

    @property
    def _in_blocks(self) -> bool:
        """Not with checkpointing: it runs the model again in the backward pass, when the kernel is put away."""
        return self.takes_blocks and not recomputes(self.model)

    def forward(self, rows: Pack, *, entropy: bool = True) -> TokenStats:
        """Statistics of the ``N`` actions of packed rows, in their order; float32, ``[N]``."""
        return self.stats(self.states(rows), rows, entropy=entropy)

    def states(self, rows: Pack) -> Tensor:
        """What predicts each of the ``N`` actions: last hidden states; logits where the head is not fused."""
        return predicting_states(self.model, rows, blocks=self._in_blocks, logits=not self.fused)

    def head(self, states: Tensor) -> Head:
        """These hidden states with what turns them into distributions; only of a fused head."""
        head = self.model.get_output_embeddings()
        assert head is not None  # a fused head is one
        scale, softcap = self.head_options.get("scale", 1.0), self.head_options.get("softcap")
        return Head(
            states, head.weight, getattr(head, "bias", None), LogitTransform(self.temperature, scale, softcap)
        )

    def stats(
        self, states: Tensor, rows: Pack, *, entropy: bool = True, collision: bool = False
    ) -> TokenStats:
        """The numbers of :meth:`forward` from its :meth:`states`."""
        target = rows.target.to(states.device)
        if self.fused:
            head = self.head(states)
            return token_stats(
                states,
                head.weight,
                target,
                bias=head.bias,
                entropy=entropy,
                collision=collision,
                keep_bytes=self.keep_bytes,
                **head.transform._asdict(),
            )
        return full_logit_stats(
            states.float(), target, self.temperature, entropy=entropy, collision=collision
        )
