"""klent's objective inside TRL's ``GRPOTrainer``: TRL samples, rewards and steps; the loss is klent's.

>>> from klent.integrations.trl import GRPOTrainer                             # doctest: +SKIP
>>> trainer = GRPOTrainer(model=..., reward_funcs=..., args=GRPOConfig(...), train_dataset=...,   # doctest: +SKIP
...                       objective={"method": "dapo", "loss": {"kl_in_loss": {"coef": 0.01}}})
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import trl
from torch import Tensor

from klent.errors import ConfigError
from klent.integrations.sections import Part, objective_of
from klent.streams.batch import Batch, Stats
from klent.streams.registry import Streams

REPLACED = (
    *("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards"),
    *("top_entropy_quantile", "off_policy_mask_threshold", "use_bias_correction_kl", "entropy_coef"),
    *("use_adaptive_entropy", "multi_objective_aggregation", "sapo_temperature_neg", "sapo_temperature_pos"),
    *("use_liger_kernel", "beta"),
)
"""Settings of GRPOConfig that TRL's own loss and advantage read; klent's have settings of their own."""

KEPT = {
    "logp_old": "old_per_token_logps",
    "logp_gen": "sampling_per_token_logps",
    "logp_ref": "ref_per_token_logps",
}
"""Streams that TRL computes, by its own names."""

_FORWARDED = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


class GRPOTrainer(trl.GRPOTrainer):
    """TRL's trainer with any objective of klent's that log-probability and entropy of each token suffice for.

    Advantages are estimated, and tokens selected, over the whole generation batch of all processes; the average is
    over every optimizer step, whatever it is cut into. So the gradient is that of ``klent train`` on the same batch.

    Args:
        model, reward_funcs, args, others: as of ``trl.GRPOTrainer``.
        objective: the sections of a recipe that say what is minimised (``method``, ``loss``, ``advantage``,
            ``token_reward``, ``select``, ``weigh``, ``reduce``), or the name of a method.

    Raises:
        ConfigError: the objective has a fault or needs what TRL does not give, or ``args`` sets what TRL's own loss
            reads and klent's does not: nothing is ignored in silence.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: Any = None,
        *,
        objective: str | Mapping[str, Any],
        **others: Any,
    ) -> None:
        config = copy.copy(args) if args is not None else trl.GRPOConfig("klent-grpo")
        refuse_replaced(config)
        steps = config.steps_per_generation * config.num_iterations / config.gradient_accumulation_steps
        part = objective_of(
            objective,
            group_size=config.num_generations,
            max_tokens=config.max_completion_length,
            optimizer_steps=max(1, round(steps)),
            host="TRL",
        )
        if part.needs.reference:
            config.beta = (
                1.0  # TRL then loads a reference and gives its log-probabilities; nothing else reads it
            )
        self.klent: Part = part
        self._known_rewards: Tensor
        self._annotated: object = None
        super().__init__(model, reward_funcs, config, **others)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """The rewards of all processes, kept for the advantage."""
        self._known_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._known_rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch, with klent's advantages, choices and weights in it."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mask = mask_of(output)
        local = {name: output.get(key) for name, key in KEPT.items()}
        if self.klent.reads_start:
            with torch.no_grad():
                local["logp_old"], local["entropy_old"], _ = self._numbers(self.model, output)
        grids = {name: self._gathered(grid) for name, grid in local.items() if grid is not None}
        generations = self.num_generations if self.model.training else self.num_generations_eval
        rewards = total_reward(self._known_rewards, self.reward_weights)
        group = torch.arange(len(rewards), device=rewards.device) // generations
        whole = self._gathered(mask)
        streams = Streams(mask=whole, rewards=rewards, group=group).with_(**grids)
        batch = Batch([], group, torch.arange(len(rewards)), whole, streams)
        start = None
        if "entropy_old" in grids:
            start = Stats(grids["logp_old"], grids["entropy_old"])
        batch = self.klent.chosen(batch, start, seed=self.args.seed + self.state.global_step)
        first = self.accelerator.process_index * len(mask)
        rows, width = slice(first, first + len(mask)), mask.shape[1]
        mine = batch.streams.rows(list(range(rows.start, rows.stop)))
        if mine.advantage is not None:
            output["advantages"] = mine.advantage[:, :width]
        output |= {f"klent.choice.{name}": grid[:, :width] for name, grid in mine.choices.items()}
        output |= {f"klent.weight.{name}": grid[:, :width] for name, grid in mine.weights.items()}
        if self.klent.reads_start:
            output["klent.entropy_old"] = local["entropy_old"]
            output.setdefault("old_per_token_logps", local["logp_old"])
        output["klent.rewards"] = rewards[rows]
        return output

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's micro-batch, with what its optimizer step divides by."""
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not self._annotated:
            self._annotated = self._buffered_inputs
            parts: list[dict[str, Any]] = self._buffered_inputs
            window = min(self.args.gradient_accumulation_steps, len(parts))
            for begin in range(0, len(parts), window):
                step = parts[begin : begin + window]
                counts = [self.klent.divisor(self._counted(part)) for part in step]
                total = torch.tensor(sum(counts), device=self.accelerator.device)
                divisor = float(self.accelerator.reduce(total, reduction="sum"))
                for part in step:
                    part["klent.divisor"] = divisor
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """klent's loss of a micro-batch, times the processes, over whose gradients TRL's backends take the mean."""
        logp, entropy, aux = self._numbers(model, inputs)
        named = {name: inputs.get(key) for name, key in KEPT.items()}
        streams = Streams(
            logp=logp,
            entropy=entropy,
            mask=mask_of(inputs),
            rewards=inputs["klent.rewards"],
            entropy_old=inputs.get("klent.entropy_old"),
            importance_weight=_wide(inputs.get("importance_sampling_ratio"), logp),
        ).with_(**named)
        if self.klent.advantages:
            streams = streams.with_(advantage=inputs["advantages"])
        streams = streams.or_else(logp_old=logp.detach(), entropy_old=entropy.detach())
        streams = streams.choosing(_named(inputs, "klent.choice.")).weighing(_named(inputs, "klent.weight."))
        outcome = self.klent.objective.token_loss(streams)
        counted = self._counted(inputs)
        divisor = inputs["klent.divisor"] if "klent.divisor" in inputs else self.klent.divisor(counted)
        loss: Tensor = self.klent.reduction(outcome.loss, counted, divisor or 1.0)  # 0: nothing is counted
        self._log(outcome.metrics, entropy, streams.mask)
        if self.model.training:
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if self.model.training else 1
            loss = loss + self.router_aux_loss_coef * aux / steps
        return loss

    def _numbers(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Any]:
        """Log-probability and entropy of each token of the completions, as TRL computes them."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        width = inputs["completion_ids"].size(1)
        more = {name: inputs[name] for name in _FORWARDED if inputs.get(name) is not None}
        logp, entropy, aux = self._get_per_token_logps_and_entropies(
            model,
            ids,
            seen,
            width,
            batch_size=self.args.per_device_train_batch_size,
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled and torch.is_grad_enabled(),
            **more,
        )
        return logp, entropy, aux

    def _counted(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.klent.counted(mask_of(inputs), _named(inputs, "klent.choice."))

    def _gathered(self, grid: Tensor) -> Tensor:
        """Rows of all processes, on one grid."""
        padded = self.accelerator.pad_across_processes(grid, dim=1)
        whole: Tensor = self.accelerator.gather(padded)
        return whole

    def _log(
        self, metrics: Mapping[str, tuple[Tensor, Tensor]], entropy: Tensor, mask: Tensor | None
    ) -> None:
        assert mask is not None
        kept = self._metrics["train" if self.model.training else "eval"]
        own = {"entropy": (entropy.detach()[mask].sum(), mask.sum())}
        for name, (total, count) in {
            **{f"klent/{key}": pair for key, pair in metrics.items()},
            **own,
        }.items():
            pair = torch.stack([total.double(), count.double()]).to(self.accelerator.device)
            total, count = self.accelerator.reduce(pair, reduction="sum")
            if float(count):
                kept[name].append(float(total / count))


def refuse_replaced(config: Any) -> None:
    """Refuse settings that TRL's own loss reads, where they are not TRL's defaults.

    Raises:
        ConfigError: there is one.
    """
    fields = type(config).__dataclass_fields__
    for name in REPLACED:
        if name in fields and getattr(config, name) != fields[name].default:
            raise ConfigError(
                f"GRPOConfig.{name} is {getattr(config, name)!r}, which TRL's own loss reads and klent's does not. "
                "Leave it out, and say in `objective` what it should do"
            )


def total_reward(rewards: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of what the reward functions said, ``[n]``; NaN where none of them said anything.

    >>> nan = float("nan")
    >>> total_reward(torch.tensor([[1.0, nan], [nan, nan]]), torch.tensor([2.0, 1.0]))
    tensor([2., nan])
    """
    total = (rewards * weights.to(rewards.device)).nansum(dim=1)
    return torch.where(rewards.isnan().all(dim=1), torch.nan, total)


def mask_of(inputs: Mapping[str, Any]) -> Tensor:
    """Which tokens the policy chose, ``[B, T]`` bool: what a tool said is none of them."""
    mask: Tensor = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()


def _named(inputs: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): grid for key, grid in inputs.items() if key.startswith(prefix)}


def _wide(weight: Tensor | None, like: Tensor) -> Tensor | None:
    """A weight of each token, also where TRL has one for each completion."""
    return None if weight is None else weight.expand_as(like)
