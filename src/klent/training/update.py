"""One step's update: batch -> micro-batches -> the policy's numbers -> a loss per action -> optimizer steps."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor, nn

from klent.kit.seeds import derive_seed
from klent.kit.world import OneProcess, World, shares
from klent.policies.policy import Policy
from klent.streams.batch import Batch, Stats
from klent.streams.episode import Episode
from klent.training.objective import Objective
from klent.training.reduction import Reduction
from klent.training.requirements import COLLISION, requirements
from klent.training.shards import whole

Sums = dict[str, tuple[float, float]]  # metric -> (sum, count): adds up over micro-batches, divided once


@dataclass
class FirstPass:
    """The policy's numbers from the first pass over the batch, before its optimizer step.

    Attributes:
        logp, entropy: ``[B, T]``, nats; 0 where not known.
        known: which episodes were computed, ``[B]`` bool.
        untouched: which of them were computed before any optimizer step of this batch, ``[B]`` bool.
    """

    logp: Tensor
    entropy: Tensor
    known: Tensor
    untouched: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "FirstPass":
        """Nothing known yet."""
        grid, rows = torch.zeros(batch.mask.shape), torch.zeros(len(batch), dtype=torch.bool)
        return cls(grid, grid.clone(), rows, rows.clone())


@dataclass
class UpdateResult:
    """What an update did.

    Attributes:
        before: the policy's numbers of the first pass; None of a policy without actions, such as a reward model.
        coefficient: ``c_t = -dL/dlogp_t`` of the first pass, times the batch's count of actions, ``[B, T]``.
        chosen: the actions that each selector chose in the first pass, bool ``[B, T]``.
        loss: the mean over optimizer steps of the reduced loss.
        grad_norm: the mean over optimizer steps of the gradient's norm before clipping.
        skipped: optimizer steps left out because a number was not finite.
        steps: optimizer steps taken or left out.
        sums: metrics of the terms.
        tokens: tokens computed in forward passes that carry a gradient, prompts and padding included.
        targets: actions among them whose prediction was computed.
    """

    before: FirstPass | None
    coefficient: Tensor
    chosen: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0
    grad_norm: float = 0.0
    skipped: int = 0
    steps: int = 0
    sums: Sums = field(default_factory=dict)
    tokens: int = 0
    targets: int = 0


@dataclass
class _Pass:
    """What the micro-batches of one optimizer step leave on the device, read once at its end."""

    loss: Tensor
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    parts: list[tuple[list[int], Stats, Tensor]] = field(default_factory=list)

    def add(self, rows: list[int], stats: Stats, gradient: Tensor) -> None:
        """Keep a micro-batch's numbers."""
        logp, entropy = stats.logp.detach(), stats.entropy.detach()
        self.parts.append((rows, Stats(logp, entropy, tokens=stats.tokens, targets=stats.targets), gradient))


class Updater:
    """Turns a batch into optimizer steps; knows neither the algorithm nor where the episodes came from.

    Args:
        policy: what is trained.
        optimizer: over the policy's trainable parameters.
        objective: what to minimise.
        learning_rate: optimizer step number (from 0) -> learning rate.
        reduction: how the loss is averaged.
        epochs: passes over the batch.
        minibatches: optimizer steps per pass; prompts stay whole.
        max_grad_norm: gradients longer than this are scaled down to it.
        asked, ahead: what is wanted beside what the terms read; see :func:`requirements`.
        world: the ranks that share a step.
        moved: what the optimizer moves, by name: master weights; None = the policy's own parameters.
        sharded: whether each rank holds a part of every weight. Then each makes as many passes as the busiest one,
            as every pass gathers weights from all, and gradients come added up.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        *,
        learning_rate: Callable[[int], float],
        reduction: Reduction,
        epochs: int = 1,
        minibatches: int = 1,
        max_grad_norm: float = math.inf,
        asked: Collection[str] = (),
        ahead: bool = False,
        world: World | None = None,
        moved: Mapping[str, nn.Parameter] | None = None,
        sharded: bool = False,
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.objective = objective
        self.learning_rate = learning_rate
        self.reduction = reduction
        self.epochs = epochs
        self.minibatches = minibatches
        self.max_grad_norm = max_grad_norm
        self.world: World = world or OneProcess()
        self.sharded = sharded
        steps = epochs * minibatches
        self.needs = requirements(objective, optimizer_steps=steps, asked=asked, ahead=ahead)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.moved = policy.trainable() if moved is None else moved
        self.steps_done = 0

    def run(
        self, batch: Batch, *, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> UpdateResult:
        """Every optimizer step of this batch; ``seed`` orders the prompts where there are several passes."""
        before = FirstPass.of(batch) if self.needs.actions else None
        result = UpdateResult(before, torch.zeros(batch.mask.shape))
        plan = list(self._plan(batch, seed))
        for number, rows in enumerate(plan):
            chosen = self._choose(batch, rows, number, seed=seed)
            active = set(self.objective.active_rows(chosen))
            first_pass = number < self.minibatches
            if first_pass:
                for name in self.objective.selection.selectors:
                    earlier = result.chosen.get(name, torch.zeros_like(batch.mask))
                    result.chosen[name] = earlier | chosen.streams.choices[name]
            self._step(chosen, rows, [row for row in rows if row in active], result, first_pass=first_pass)
            if number == 0 and result.before is not None:
                result.before.untouched = result.before.known.clone()
            if progress:
                progress(number + 1, len(plan))
        result.loss /= max(len(plan), 1)
        result.grad_norm /= max(len(plan), 1)
        result.steps = len(plan)
        return result

    def _plan(self, batch: Batch, seed: int) -> Iterator[list[int]]:
        """The episodes of each optimizer step, prompts whole."""
        prompts = int(batch.group.max()) + 1
        order = torch.arange(prompts)
        for epoch in range(self.epochs):
            if self.minibatches > 1:
                generator = torch.Generator().manual_seed(seed + epoch)
                order = torch.randperm(prompts, generator=generator)
            for part in order.tensor_split(self.minibatches):
                yield torch.isin(batch.group, part).nonzero()[:, 0].tolist()

    def _choose(self, batch: Batch, rows: list[int], number: int, *, seed: int) -> Batch:
        """The batch with what is chosen and weighed for this optimizer step, over all of its episodes.

        The first one trains the policy that sampled, so the engine's own numbers are at hand.
        """
        selection = self.objective.selection
        if not selection.functions:
            return batch
        policy = batch.at_sampling
        unknown = policy is None or (selection.reads_collision and policy.collision is None)
        if selection.reads_policy and (number > 0 or unknown):
            policy = self.measure(batch, rows)
        return selection.choose(batch, rows, policy, seed=derive_seed(seed, "optimizer step", number))

    def _step(
        self, batch: Batch, rows: list[int], active: list[int], result: UpdateResult, *, first_pass: bool
    ) -> None:
        """One optimizer step on these episodes; the ``active`` are computed, all of them are counted."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.steps_done) * group.get("lr_scale", 1.0)
        self.steps_done += 1
        self.optimizer.zero_grad(set_to_none=True)
        divisor = self.reduction.divisor(self.reduction.counted(batch)[rows])
        self.policy.train()
        device = self.parameters[0].device
        done = _Pass(torch.zeros((), dtype=torch.float64, device=device))
        mine = self._mine(batch, active)
        parts = self.policy.microbatches(batch, mine) if mine else []
        idle = self._idle(batch, active, len(parts))
        for part in parts:
            self._accumulate(batch, part, divisor, done)
        for row in idle:
            (self.policy.evaluate(batch, [row]).logp.sum() * 0.0).backward()
        norm = float(self._gradient_norm()) if active else 0.0
        self._read(done, batch, result, first_pass=first_pass)
        total = float(self.world.sum(done.loss))
        if not (math.isfinite(total) and math.isfinite(norm)):
            result.skipped += 1
            self.optimizer.zero_grad(set_to_none=True)
            return
        result.loss += total
        result.grad_norm += norm
        if active:  # without a gradient there is nothing to follow, not even the momentum of earlier steps
            self.optimizer.step()

    def _accumulate(self, batch: Batch, rows: list[int], divisor: float, done: _Pass) -> None:
        """Forward, loss and backward of one micro-batch."""
        stats = self.policy.evaluate(batch, rows, **_also(self.needs.also))
        logp, entropy = stats.logp, stats.entropy
        streams = batch.streams.rows(rows).to(logp.device)
        if self.needs.actions:
            logp.retain_grad()
            streams = streams.or_else(logp_old=logp.detach(), entropy_old=entropy.detach())
            streams = streams.with_(logp=logp, entropy=entropy)
        streams = streams.with_(**{name: getattr(stats, name) for name in self.needs.also})
        outcome = self.objective.token_loss(streams)
        counted = self.reduction.counted(batch)[rows].to(logp.device)
        loss = self.reduction(outcome.loss, counted, divisor)
        loss.backward()
        done.loss += loss.detach()
        for name, (part, count) in outcome.metrics.items():
            total, number = done.sums.get(name, (0.0, 0.0))
            done.sums[name] = (total + part.double(), number + count.double())
        done.add(rows, stats, torch.zeros_like(logp) if logp.grad is None else logp.grad)

    def _mine(self, batch: Batch, rows: Sequence[int]) -> list[int]:
        """The rows of these that this rank computes: prompts are whole, or units where prompts are too few."""
        if self.world.size == 1:
            return list(rows)
        whole = batch.group if len(batch.group[list(rows)].unique()) >= self.world.size else batch.unit
        together: dict[int, list[int]] = {}
        for row in rows:
            together.setdefault(int(whole[row]), []).append(row)
        items = list(together.values())
        costs = [float(sum(_length(batch.episodes[row]) for row in item)) for item in items]
        return sorted(row for item in shares(costs, self.world.size)[self.world.rank] for row in items[item])

    def _gradient_norm(self) -> Tensor:
        """Add gradients up over ranks, clip them, and give their norm before clipping."""
        if self.world.size > 1 and not self.sharded:
            for parameter in self.parameters:
                idle = parameter.grad is None
                parameter.grad = self.world.sum(torch.zeros_like(parameter) if idle else parameter.grad)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.max_grad_norm, norm)
        return norm

    def _idle(self, batch: Batch, rows: Sequence[int], passes: int) -> list[int]:
        """The row to compute in each pass that others make beyond this rank's own, for nothing; the shortest.

        Asked before the first pass: a pass is one more thing that ranks do together.
        """
        if not self.sharded:
            return []
        most = max(int(said) for said in self.world.gather(str(passes).encode()))
        return [min(rows, key=lambda row: _length(batch.episodes[row]))] * (most - passes) if rows else []

    def _read(self, done: _Pass, batch: Batch, result: UpdateResult, *, first_pass: bool) -> None:
        """Take the numbers of an optimizer step off the device, and add up what the ranks have of them."""
        sums = {name: (float(total), float(count)) for name, (total, count) in done.sums.items()}
        counts = torch.zeros(2, dtype=torch.long)
        numbers, known = torch.zeros(3, *batch.mask.shape), torch.zeros(len(batch))
        for rows, stats, gradient in done.parts:
            counts += torch.tensor([stats.tokens, stats.targets])
            numbers[:, rows] = torch.stack([gradient.cpu(), stats.logp.cpu(), stats.entropy.cpu()]).to(
                numbers
            )
            known[rows] = 1.0
        for of_rank in self.world.gather(json.dumps(sums).encode()):
            for name, (total, count) in json.loads(of_rank).items():
                before = result.sums.get(name, (0.0, 0.0))
                result.sums[name] = (before[0] + total, before[1] + count)
        tokens, targets = self.world.sum(counts).tolist()
        result.tokens += tokens
        result.targets += targets
        if first_pass and result.before is not None:
            gradient, logp, entropy = self.world.sum(numbers)
            measured = self.world.sum(known) > 0
            result.coefficient[measured] = -gradient[measured] * batch.tokens
            result.before.logp[measured] = logp[measured]
            result.before.entropy[measured] = entropy[measured]
            result.before.known |= measured

    @torch.no_grad()
    def measure(
        self, batch: Batch, rows: Sequence[int], policy: Policy | None = None, *, values: bool = False
    ) -> Stats:
        """``logp`` and ``entropy`` of these episodes under a policy as it stands, ``[B, T]``, 0 elsewhere.

        Taken without dropout: this is the distribution that samples. With the sums over squared probabilities
        where a selector or a weight reads them, and with the critic's ``values`` on request.
        """
        collision = policy is None and self.objective.selection.reads_collision
        also = [*(["value"] if values else []), *(sorted(COLLISION) if collision else [])]
        policy = policy or self.policy
        measured = {name: torch.zeros(batch.mask.shape) for name in ("logp", "entropy", *also)}
        policy.train(False)
        mine = self._mine(batch, rows)
        parts = policy.microbatches(batch, mine) if mine else []
        idle = self._idle(batch, rows, len(parts)) if policy is self.policy else []
        for part in parts:
            stats = policy.evaluate(batch, part, **_also(also))
            for name, grid in measured.items():
                grid[part] = getattr(stats, name).to(grid)
        for row in idle:
            policy.evaluate(batch, [row])
        measured = {name: self.world.sum(grid) for name, grid in measured.items()}
        return Stats(
            measured["logp"],
            measured["entropy"],
            value=measured.get("value"),
            collision=measured.get("collision"),
            collision_logp=measured.get("collision_logp"),
        )


def _length(episode: Episode) -> int:
    """Tokens that a policy reads of an episode."""
    return len(episode.prompt_ids) + len(episode.tokens)


class _Asked(TypedDict, total=False):
    also: Collection[str]


def _also(wanted: Collection[str]) -> _Asked:
    """What a policy is asked for beside its numbers; one that is never asked need not know of it."""
    return {"also": wanted} if wanted else {}
