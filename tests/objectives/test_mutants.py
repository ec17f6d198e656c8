"""The tests tested: each mutant is one plausible mistake in the source, and the test beside it must notice.

A mutant is a file of ``klent.objectives`` with one string replaced, run in a module of its own whose public
functions then stand in for the real ones.
"""

# ruff: noqa: E501 - a table is read across, one mutant a line

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from klent import objectives as O
from objectives import test_advantage as advantage
from objectives import test_entropy as entropy
from objectives import test_kl as kl
from objectives import test_laws as laws
from objectives import test_reduce as reduce
from objectives import test_surrogate as surrogate
from objectives.helpers import random_tokens


class Mutant(NamedTuple):
    mistake: str
    file: str
    old: str
    new: str
    killer: Callable[[], object]


def off_mask(name: str) -> Callable[[], object]:
    """The law that values off the mask are never read, on one batch."""
    law = laws.test_numbers_do_not_read_what_is_off_the_mask
    if name in laws.LOSSES:
        law = laws.test_losses_do_not_read_what_is_off_the_mask
    return partial(law.hypothesis.inner_test, name=name, batch=random_tokens(0))


def cut(name: str, over: str) -> Callable[[], object]:
    """The law that micro-batches add up, on one batch cut after its first row."""
    law = laws.test_parts_of_a_step_add_up_to_the_step.hypothesis.inner_test
    return partial(law, name=name, over=over, batch=random_tokens(0), cut=1)


MUTANTS = [
    # likelihood
    Mutant("flipped sign", "likelihood.py", "on_mask(mask, -logp)", "on_mask(mask, logp)", surrogate.test_cross_entropy_table),
    Mutant("forgotten mask", "likelihood.py", "(loss,) = on_mask(mask, -logp)", "loss = -logp", off_mask("cross_entropy")),
    # surrogate
    Mutant("flipped sign of A", "surrogate.py", "logp, cost = on_mask(mask, logp, -advantage", "logp, cost = on_mask(mask, logp, advantage", surrogate.test_reinforce_table),
    Mutant("A carries gradient", "surrogate.py", "on_mask(mask, logp, -advantage.detach())", "on_mask(mask, logp, -advantage)", partial(laws.test_losses_train_the_policy_and_nothing_else, "reinforce")),
    Mutant("masked after the product", "surrogate.py", "    logp, cost = on_mask(mask, logp, -advantage.detach())\n", "    cost = -advantage.detach() * mask\n", off_mask("reinforce")),
    Mutant("flipped sign of A", "surrogate.py", "-advantage * log_ratio.clamp", "advantage * log_ratio.clamp", surrogate.test_ppo_clip_table),
    Mutant("max for min", "surrogate.py", "masked_fill(advantage <= 0, floor)", "masked_fill(advantage >= 0, floor)", surrogate.test_ppo_clip_table),
    Mutant("clip both sides", "surrogate.py", "torch.full_like(log_ratio, -math.inf)", "torch.full_like(log_ratio, floor)", surrogate.test_ppo_clip_table),
    Mutant("bounds swapped", "surrogate.py", "math.log(1 - clip_low) if clip_low < 1", "math.log(1 - clip_high) if clip_low < 1", surrogate.test_ppo_clip_bounds_are_separate),
    Mutant("log of 1 - bound above", "surrogate.py", "ceiling = math.log1p(clip_high)", "ceiling = -math.log1p(-clip_high)", surrogate.test_ppo_clip_table),
    Mutant("dual clip dropped", "surrogate.py", "torch.full_like(log_ratio, dual)", "torch.full_like(log_ratio, math.inf)", surrogate.test_ppo_clip_dual_bounds_bad_tokens_from_above),
    Mutant("no bound where A is 0", "surrogate.py", "advantage >= 0, ceiling", "advantage > 0, ceiling", partial(surrogate.test_ppo_clip_survives_a_ratio_that_overflows, "token", 0.0)),
    Mutant("exp before the bound", "surrogate.py", "log_ratio.clamp(lower, upper).exp()", "log_ratio.exp().clamp(lower.exp(), upper.exp())", partial(surrogate.test_ppo_clip_survives_a_ratio_that_overflows, "token", 1.0)),
    Mutant("metric ignores the sign of A", "surrogate.py", "(advantage > 0) & (log_ratio > ceiling)", "log_ratio > ceiling", surrogate.test_ppo_clip_metrics_count_what_binds),
    Mutant("metric after clipping", "surrogate.py", '"ratio": metric(log_ratio.exp(), mask),\n', '"ratio": metric(log_ratio.clamp(lower, upper).exp(), mask),\n', surrogate.test_ppo_clip_metrics_count_what_binds),
    Mutant("sequence ratio not averaged", "surrogate.py", " / mask.sum(dim=1, keepdim=True).clamp(min=1)", "", surrogate.test_ppo_clip_sequence_table),
    Mutant("sequence ratio over the padding too", "surrogate.py", "mask.sum(dim=1, keepdim=True).clamp(min=1)", "mask.shape[1]", surrogate.test_ppo_clip_sequence_table),
    Mutant("sequence ratio without a gradient", "surrogate.py", "mean.detach() + (log_ratio - log_ratio.detach())", "mean.detach() + 0 * log_ratio", surrogate.test_ppo_clip_sequence_table),
    Mutant("sequence gradient divided twice", "surrogate.py", "mean.detach() + (log_ratio - log_ratio.detach())", "mean.detach() + (mean - mean.detach()).expand_as(log_ratio) / 2", surrogate.test_ppo_clip_sequence_table),
    Mutant("cispo: weight carries gradient", "surrogate.py", "(logp.detach() - logp_old).exp()", "(logp - logp_old).exp()", surrogate.test_cispo_table),
    Mutant("cispo: no bound", "surrogate.py", "ratio.clamp(max=ratio_max) * cost", "ratio * cost", surrogate.test_cispo_table),
    Mutant("cispo: bounded below instead", "surrogate.py", "ratio.clamp(max=ratio_max)", "ratio.clamp(min=ratio_max)", surrogate.test_cispo_table),
    # advantage
    Mutant("std not divided", "advantage.py", "return centred / torch.where(differ, variance, 1.0).sqrt()", "return centred", advantage.test_group_advantage_table),
    Mutant("variance for std", "advantage.py", "torch.where(differ, variance, 1.0).sqrt()", "torch.where(differ, variance, 1.0)", advantage.test_group_advantage_table),
    Mutant("population for sample", "advantage.py", "member) / (count - 1).clamp(min=1)\n    return", "member) / count.clamp(min=1)\n    return", advantage.test_group_advantage_table),
    Mutant("own reward in the baseline", "advantage.py", "return centred * count / (count - 1).clamp(min=1)", "return centred", advantage.test_leave_one_out_table),
    Mutant("biased baseline", "advantage.py", "return centred * count / (count - 1).clamp(min=1)", "return centred", surrogate.test_leave_one_out_keeps_reinforce_unbiased),
    Mutant("unscorable counted", "advantage.py", "count = _group_sum(scorable.to(rewards.dtype), member)", "count = _group_sum(torch.ones_like(rewards), member)", advantage.test_unscorable_rewards_leave_the_baseline_alone),
    Mutant("unscorable as reward 0", "advantage.py", "scorable = rewards.isfinite()", "rewards = rewards.nan_to_num(0.0, 0.0)\n    scorable = rewards.isfinite()", advantage.test_unscorable_rewards_leave_the_baseline_alone),
    Mutant("rounding taken for a difference", "advantage.py", "differ = highest - lowest > rounding", "differ = highest > lowest", partial(advantage.test_groups_that_tell_nothing_get_exactly_zero, [0.1 + 0.2, 0.3, 0.3], advantage.torch.float64)),
    Mutant("equal rewards not exactly 0", "advantage.py", "on_mask(scorable & differ, known - mean)", "on_mask(scorable, known - mean)", partial(advantage.test_groups_that_tell_nothing_get_exactly_zero, [0.1, 0.1, 0.1], advantage.torch.float64)),
    Mutant("one group for all", "advantage.py", "_, member = torch.unique(group, return_inverse=True)", "member = torch.zeros_like(group)", advantage.test_group_advantage_table),
    Mutant("gamma missing in δ", "advantage.py", "gamma * next_value - values", "next_value - values", advantage.test_gae_table),
    Mutant("lam missing", "advantage.py", "error + gamma * lam * next_advantage", "error + gamma * next_advantage", advantage.test_gae_table),
    Mutant("a hole ends the episode", "advantage.py", "next_value = torch.where(mask[:, t], values[:, t], next_value)", "next_value = values[:, t]", advantage.test_gae_table),
    Mutant("reward so far for reward to go", "advantage.py", "for t in reversed(range(rewards.shape[1])):", "for t in range(rewards.shape[1]):", advantage.test_reward_to_go_table),
    # kl
    Mutant("k1: sign", "kl.py", "    delta = logp - logp_ref\n    if estimator", "    delta = logp_ref - logp\n    if estimator", kl.test_kl_estimate_table),
    Mutant("k2: no half", "kl.py", "delta.square() / 2", "delta.square()", kl.test_kl_estimate_table),
    Mutant("k3: sign", "kl.py", "return torch.expm1(-delta) + delta", "return torch.expm1(delta) - delta", kl.test_mean_over_five_words),
    Mutant("k3: exp - 1", "kl.py", "return torch.expm1(-delta) + delta", "return (-delta).exp() - 1 + delta", kl.test_k3_keeps_its_digits_near_the_reference),
    Mutant("k3: clamped", "kl.py", "return torch.expm1(-delta) + delta", "return torch.expm1(-delta.clamp(-20, 20)) + delta", kl.test_nothing_is_clamped_far_from_the_reference),
    Mutant("reward: sign", "kl.py", "return coef * (logp_ref - logp)", "return coef * (logp - logp_ref)", kl.test_in_reward_with_reward_to_go_is_exact_for_sequences),
    Mutant("reward: coef forgotten", "kl.py", "return coef * (logp_ref - logp)", "return logp_ref - logp", kl.test_in_reward_with_reward_to_go_is_exact_for_sequences),
    Mutant("reward: carries gradient", "kl.py", "on_mask(mask, logp.detach(), logp_ref.detach())\n    return", "on_mask(mask, logp, logp_ref)\n    return", kl.test_kl_in_reward_table),
    Mutant("reward: forgotten mask", "kl.py", "    logp, logp_ref = on_mask(mask, logp.detach(), logp_ref.detach())\n", "    logp = logp.detach()\n", off_mask("kl_in_reward")),
    Mutant("loss: reverse for forward", "kl.py", "slope = -weight * r_minus_1", "slope = weight * delta", partial(kl.test_in_loss_on_policy_is_exact_token_by_token, "forward")),
    Mutant("loss: k3's slope for reverse", "kl.py", "slope = weight * delta", "slope = -weight * r_minus_1", partial(kl.test_in_loss_on_policy_is_exact_token_by_token, "reverse")),
    Mutant("loss: sign", "kl.py", "slope = weight * delta", "slope = -weight * delta", partial(kl.test_in_loss_on_policy_is_exact_token_by_token, "reverse")),
    Mutant("loss: no ratio", "kl.py", "weight = (logp.detach() - logp_old).exp()", "weight = torch.ones_like(delta)", partial(kl.test_in_loss_off_policy_is_exact_token_by_token, "reverse")),
    Mutant("loss: no ratio, forward", "kl.py", "weight = (logp.detach() - logp_old).exp()", "weight = torch.ones_like(delta)", partial(kl.test_in_loss_off_policy_is_exact_token_by_token, "forward")),
    Mutant("loss: ratio upside down", "kl.py", "weight = (logp.detach() - logp_old).exp()", "weight = (logp_old - logp.detach()).exp()", kl.test_kl_in_loss_off_policy_table),
    Mutant("loss: value of k3 for forward", "kl.py", "value = weight * (-delta * delta.neg().exp() - r_minus_1)", "value = weight * (r_minus_1 + delta)", partial(kl.test_in_loss_on_policy_is_exact_token_by_token, "forward")),
    Mutant("loss: no ratio on the value", "kl.py", "value = weight * (r_minus_1 + delta)", "value = r_minus_1 + delta", partial(kl.test_in_loss_off_policy_is_exact_token_by_token, "reverse")),
    Mutant("loss: metric times coef", "kl.py", '{"kl": metric(value, mask)}', '{"kl": metric(coef * value, mask)}', kl.test_kl_in_loss_table),
    Mutant("loss: autograd's cancellation", "kl.py", "loss = coef * (value + slope * (logp - logp.detach()))", "d = logp - logp_ref\n    w = (logp - logp.detach()).exp()\n    loss = coef * w * (torch.expm1(-d) + d)", kl.test_gradient_survives_where_autograd_would_not),
    Mutant("0 log 0 is NaN", "kl.py", "torch.where(support, logp_p, 0.0) - torch.where(support, logp_q, 0.0)", "logp_p - logp_q", kl.test_categorical_kl_table),
    Mutant("direction turned", "kl.py", "(logp_p.exp() * gap)", "(logp_q.exp() * -gap)", kl.test_categorical_kl_agrees_with_oracle_and_has_its_gradient),
    # entropy
    Mutant("bonus for penalty", "entropy.py", "on_mask(mask, coef * entropy)", "on_mask(mask, -coef * entropy)", entropy.test_entropy_loss_table),
    Mutant("lowest for highest", "entropy.py", "ranked.argsort(descending=True", "ranked.argsort(descending=False", entropy.test_high_entropy_tokens_table),
    Mutant("fraction of all tokens", "entropy.py", "_share(fraction, mask.sum())", "_share(fraction, torch.tensor(mask.numel()))", entropy.test_high_entropy_tokens_table),
    Mutant("rounded down", "entropy.py", "(count * billionths + 10**9 - 1) // 10**9", "(count * billionths) // 10**9", entropy.test_high_entropy_tokens_table),
    Mutant("rounded up in floats", "entropy.py", "(count * billionths + 10**9 - 1) // 10**9", "(count.double() * fraction).ceil()", entropy.test_high_entropy_tokens_counts_exactly),
    Mutant("order for rank", "entropy.py", "rank[order] = torch.arange(len(order), device=order.device)", "rank = order", entropy.test_high_entropy_tokens_table),
    Mutant("masked tokens may be chosen", "entropy.py", "torch.where(mask, entropy.detach(), -torch.inf).flatten()", "entropy.detach().flatten()", off_mask("high_entropy_tokens")),
    Mutant("advantage not centred", "entropy.py", "(advantage - advantage.sum() / count)", "advantage", entropy.test_token_covariance_table),
    Mutant("mean over the padding too", "entropy.py", "count = mask.sum().clamp(min=1)", "count = mask.numel()", entropy.test_token_covariance_table),
    Mutant("fit: sign of a", "entropy.py", "RewardEntropyFit(-slope.item()", "RewardEntropyFit(slope.item()", entropy.test_fit_reward_entropy_recovers_a_law),
    Mutant("fit: linear in H", "entropy.py", 'entropy.detach().to("cpu", torch.float64).exp()', 'entropy.detach().to("cpu", torch.float64)', entropy.test_fit_reward_entropy_recovers_a_law),
    Mutant("fit: ceiling at exp(H) = 0", "entropy.py", "(slope + b).item()", "b.item()", entropy.test_fit_reward_entropy_recovers_a_law),
    Mutant("fit: n for n - 2", "entropy.py", "square().sum() / (n - 2)", "square().sum() / n", entropy.test_fit_reward_entropy_by_hand),
    Mutant("fit: covariance of the slope", "entropy.py", "[1 / spread, mean / spread, mean / spread,", "[1 / spread, -mean / spread, -mean / spread,", entropy.test_covariance_of_the_fit_is_the_spread_over_repetitions),
    # reduce
    Mutant("wrong denominator", "reduce.py", "total, count = loss.sum(), lengths.sum()", "total, count = loss.sum(), torch.tensor(loss.numel())", reduce.test_reduce_tokens_averages_over_tokens_unless_told),
    Mutant("rows without a token counted", "reduce.py", "(lengths > 0).sum()", "torch.tensor(len(lengths))", cut("reinforce", "sequences")),
    Mutant("denominator ignored", "reduce.py", "count if denominator is None else denominator", "count", cut("reinforce", "tokens")),
    Mutant("denominator ignored by constant", "reduce.py", "count if denominator is None else denominator", "count", cut("reinforce", "constant")),
    Mutant("token mean for sequences", "reduce.py", 'if over == "sequences":', "if False:", partial(reduce.test_reduce_tokens_table, "sequences", None, 5.0, [[1 / 6] * 3, [1 / 2, 0, 0], [0] * 3])),
    Mutant("0 / 0", "reduce.py", "torch.where(divisor == 0, 1, divisor)", "divisor", partial(reduce.test_nothing_on_the_mask_gives_zero_and_runs_backward, "tokens", None, (2, 3))),
    Mutant("forgotten mask", "reduce.py", "    (loss,) = on_mask(mask, loss)\n", "", reduce.test_reduce_tokens_averages_over_tokens_unless_told),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.mistake}")
def test_mutant_is_killed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (Path(O.__file__).parent / mutant.file).read_text()
    assert source.count(mutant.old) >= 1, "the source has changed: bring the mutant up to date"
    assert source.count(mutant.old) == 1, "ambiguous: quote more of the line"
    module = ModuleType("mutant")
    exec(compile(source.replace(mutant.old, mutant.new), f"mutant of {mutant.file}", "exec"), module.__dict__)
    mutant.killer()  # the real source passes
    for name in O.__all__:
        if inspect.isfunction(getattr(module, name, None)) and getattr(module, name).__module__ == "mutant":
            monkeypatch.setattr(O, name, getattr(module, name))
    with pytest.raises(AssertionError):
        mutant.killer()
