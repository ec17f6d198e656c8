"""One step's update: batch -> packed micro-batches -> TokenStats -> TokenLoss -> number -> optimizer step."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from klent.control.schedule import derive_seed
from klent.head import TokenStats
from klent.objectives import reduce_tokens
from klent.policies.causal_lm.distill import Distiller
from klent.policies.causal_lm.packing import Group, Pack, make_groups, make_microbatches, pack
from klent.policies.causal_lm.policy import Policy
from klent.streams.batch import Batch
from klent.training.objective import Objective

Sums = dict[str, tuple[float, float]]  # metric -> (sum, count): adds up over micro-batches, divided once


@dataclass
class UpdateResult:
    """What an update did.

    Attributes:
        loss: the mean over optimizer steps of the reduced loss.
        grad_norm: the mean over optimizer steps of the gradient's norm before clipping.
        skipped: optimizer steps left out because a number was not finite.
        steps: optimizer steps taken or left out.
        sums: metrics of the terms.
        coefficient: ``c_t = -dL/dlogp_t`` of the first pass over the batch, times its token count, ``[B,
            T]``.
        chosen: the tokens that each selector chose in the first pass, bool ``[B, T]``.
        before: the trainer's own ``logp`` and ``entropy`` of the first pass over the batch, ``[B, T]``, and
            of which completions they are ``known``, and ``untouched`` by an optimizer step, ``[B]`` bool.
        tokens: tokens computed in forward passes that carry a gradient, prompts and padding included.
        targets: completion tokens among them whose prediction was computed.
    """

    loss: float = 0.0
    grad_norm: float = 0.0
    skipped: int = 0
    steps: int = 0
    sums: Sums = field(default_factory=dict)
    coefficient: Tensor = field(default_factory=lambda: torch.zeros(0))
    chosen: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    targets: int = 0


class Updater:
    """Turns a batch into optimizer steps; knows neither the algorithm nor where the completions came from.

    Args:
        policy: the model being trained.
        optimizer: over the policy's trainable parameters.
        objective: what to minimise.
        learning_rate: optimizer step number (from 0) -> learning rate.
        reduce: ``over``; for ``constant``, ``denominator``: what one completion counts for; and ``count``,
            ``all`` to divide by every token of the step where only selected ones are trained on.
        epochs: passes over the batch.
        minibatches: optimizer steps a pass; prompts stay whole.
        tokens_per_microbatch: tokens (padding included) in one forward pass.
        shared: pack groups behind their prompt.
        max_grad_norm: gradients longer than this are scaled down to it.
        distiller: adds a divergence from a target to the loss of every token.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        *,
        learning_rate: Callable[[int], float],
        reduce: Mapping[str, Any],
        epochs: int,
        minibatches: int,
        tokens_per_microbatch: int,
        shared: bool,
        max_grad_norm: float,
        distiller: Distiller | None = None,
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.objective = objective
        self.learning_rate = learning_rate
        self.reduce = reduce
        self.epochs = epochs
        self.minibatches = minibatches
        self.budget = tokens_per_microbatch
        self.shared = shared
        self.max_grad_norm = max_grad_norm
        self.distiller = distiller
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.steps_done = 0

    def run(
        self, batch: Batch, *, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> UpdateResult:
        """Every optimizer step of this batch; ``seed`` orders the prompts where there are several passes."""
        result = UpdateResult(coefficient=torch.zeros(batch.mask.shape))
        result.before = {
            "logp": torch.zeros(batch.mask.shape),
            "entropy": torch.zeros(batch.mask.shape),
            "known": torch.zeros(len(batch.mask), dtype=torch.bool),
        }
        plan = list(self._plan(batch, seed))
        for number, rows in enumerate(plan):
            chosen = self._choose(batch, rows, number, seed=seed)
            active = set(rows if self.distiller else self.objective.active_rows(chosen))
            first_pass = number < self.minibatches
            if first_pass:
                for name in self.objective.selection.selectors:
                    result.chosen[name] = result.chosen.get(name, False) | chosen.streams[name]
            self._step(chosen, rows, [b for b in rows if b in active], result, first_pass=first_pass)
            if number == 0:
                result.before["untouched"] = result.before["known"].clone()
            if progress:
                progress(number + 1, len(plan))
        result.loss /= max(len(plan), 1)
        result.grad_norm /= max(len(plan), 1)
        result.steps = len(plan)
        return result

    def _plan(self, batch: Batch, seed: int) -> Iterator[list[int]]:
        """The completions of each optimizer step, prompts whole."""
        prompts = int(batch.group.max()) + 1
        order = torch.arange(prompts)
        for epoch in range(self.epochs):
            if self.minibatches > 1:
                generator = torch.Generator().manual_seed(seed + epoch)
                order = torch.randperm(prompts, generator=generator)
            for part in order.tensor_split(self.minibatches):
                yield torch.isin(batch.group, part).nonzero()[:, 0].tolist()

    def _choose(self, batch: Batch, rows: list[int], number: int, *, seed: int) -> Batch:
        """The batch with what the selectors choose for this optimizer step, over all of its completions.

        The first one trains the policy that sampled, so its own log-probabilities and entropies are at hand.
        """
        selection = self.objective.selection
        if not selection.selectors:
            return batch
        own = batch.own
        replayed = own["logp"][batch.mask].isnan().any()  # a data set's completions were not sampled
        if selection.reads_policy and (number > 0 or replayed):
            own = self.measure(batch, rows)
        return selection.choose(batch, rows, own, seed=derive_seed(seed, "optimizer step", number))

    def _step(
        self, batch: Batch, rows: list[int], active: list[int], result: UpdateResult, *, first_pass: bool
    ) -> None:
        """One optimizer step on these completions; the ``active`` are computed, all of them are counted."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.steps_done)
        self.steps_done += 1
        self.optimizer.zero_grad(set_to_none=True)
        denominator = self._denominator(self._counted(batch)[rows])
        self.policy.train()
        total = 0.0
        for groups in self._groups(batch, active):
            rows_packed = pack(groups, shared=self.shared)
            total += self._accumulate(batch, rows_packed, groups, denominator, result, first_pass=first_pass)
            result.tokens += rows_packed.tokens
            result.targets += len(rows_packed.target)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)) if active else 0.0
        if not (math.isfinite(total) and math.isfinite(norm)):
            result.skipped += 1
            self.optimizer.zero_grad(set_to_none=True)
            return
        result.loss += total
        result.grad_norm += norm
        if active:  # without a gradient there is nothing to follow, not even the momentum of earlier steps
            self.optimizer.step()

    def _counted(self, batch: Batch) -> Tensor:
        """The tokens that an average is over."""
        return batch.mask if self.reduce.get("count") == "all" else batch.trained

    def _denominator(self, mask: Tensor) -> float:
        """What the whole optimizer step divides by: any cut into micro-batches adds up to the same."""
        over = self.reduce["over"]
        if over == "tokens":
            return float(mask.sum())
        if over == "sequences":
            return float(mask.any(dim=1).sum())
        return float(len(mask)) * float(self.reduce["denominator"])

    def _groups(self, batch: Batch, rows: Sequence[int]) -> list[list[Group]]:
        """The completions of each micro-batch."""
        groups = make_groups(batch.completions(rows), shared=self.shared, budget=self.budget)
        return make_microbatches(groups, budget=self.budget)

    def _packs(self, batch: Batch, rows: Sequence[int]) -> Iterator[Pack]:
        for groups in self._groups(batch, rows):
            yield pack(groups, shared=self.shared)

    def _accumulate(
        self,
        batch: Batch,
        rows: Pack,
        groups: list[Group],
        denominator: float,
        result: UpdateResult,
        *,
        first_pass: bool,
    ) -> float:
        """Forward, loss and backward of one micro-batch; its share of the reduced loss."""
        states = self.policy.states(rows)
        stats = self.policy.stats(states, rows)
        assert stats.entropy is not None
        here, place = rows.row.unique(return_inverse=True)
        mask = batch.mask[here]
        device = stats.logp.device
        where = (place.to(device), rows.column.to(device))
        logp = torch.zeros(mask.shape, device=device).index_put(where, stats.logp)
        entropy = torch.zeros(mask.shape, device=device).index_put(where, stats.entropy)
        logp.retain_grad()
        streams = {name: value[here].to(device) for name, value in batch.streams.items()}
        streams = {"logp_old": logp.detach(), "entropy_old": entropy.detach(), **streams}
        streams |= {"logp": logp, "entropy": entropy, "mask": batch.trained[here].to(device)}
        out = self.objective.token_loss(streams)
        counted = self._counted(batch)[here].to(device)
        token_loss = out.loss
        if self.distiller is not None:
            apart = self.distiller.divergence(self.policy, states, batch, groups)
            grid = torch.zeros(mask.shape, device=device).index_put(where, apart)
            token_loss = token_loss + self.distiller.settings.coef * grid * streams["mask"]
            old = result.sums.get("distill", (0.0, 0.0))
            result.sums["distill"] = (old[0] + float(apart.detach().sum()), old[1] + len(apart))
        loss = reduce_tokens(token_loss, counted, over=self.reduce["over"], denominator=denominator)
        loss.backward()
        for name, (part, count) in out.metrics.items():
            old = result.sums.get(name, (0.0, 0.0))
            result.sums[name] = (old[0] + float(part), old[1] + float(count))
        if first_pass:
            gradient = logp.grad if logp.grad is not None else torch.zeros_like(logp)
            result.coefficient[here] = -gradient.cpu() * batch.tokens
            result.before["logp"][here] = logp.detach().cpu()
            result.before["entropy"][here] = entropy.detach().cpu()
            result.before["known"][here] = True
        return float(loss.detach())

    @torch.no_grad()
    def measure(self, batch: Batch, rows: Sequence[int], policy: Policy | None = None) -> dict[str, Tensor]:
        """``logp`` and ``entropy`` of these completions under a policy as it stands, ``[B, T]``, 0 elsewhere.

        Taken without dropout: this is the distribution that samples.
        """
        policy = policy or self.policy
        found = {"logp": torch.zeros(batch.mask.shape), "entropy": torch.zeros(batch.mask.shape)}
        policy.eval()
        for rows_packed in self._packs(batch, rows):
            stats: TokenStats = policy(rows_packed)
            for name in found:
                found[name][rows_packed.row, rows_packed.column] = getattr(stats, name).cpu()
        return found
