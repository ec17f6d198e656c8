"""The tests tested: each mutant is one plausible mistake in the source, and the test beside it must notice.

A mutant is a file of ``klent.objectives`` with one string replaced, run in a module of its own whose functions
then stand in for the real ones, wherever these are used. A function's own test file may have its mutants, in
``MUTANTS``.
"""

# ruff: noqa: E501 - a table is read across, one mutant a line

import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from klent import objectives as O
from objectives import test_advantage as advantage
from objectives import test_covariance as covariance
from objectives import test_diffusion as diffusion
from objectives import test_entropy as entropy
from objectives import test_exploration as exploration
from objectives import test_gaussian as gaussian
from objectives import test_importance as importance
from objectives import test_kl as kl
from objectives import test_laws as laws
from objectives import test_likelihood as likelihood
from objectives import test_measures as measures
from objectives import test_preference as preference
from objectives import test_qsft as qsft
from objectives import test_reduce as reduce
from objectives import test_regret as regret
from objectives import test_semantic as semantic
from objectives import test_surrogate as surrogate
from objectives import test_tokens as choices
from objectives.declared import functions, provided
from objectives.helpers import Mutant


def off_mask(name: str) -> Callable[[], object]:
    """The law that values off the mask are never read, on one batch."""
    law = laws.test_numbers_do_not_read_what_is_off_the_mask
    if name.split()[0] in functions("token_loss"):
        law = laws.test_losses_do_not_read_what_is_off_the_mask
    return partial(law.hypothesis.inner_test, name=case_of(name), size=(0, 4, 6))


def cut(name: str, over: str) -> Callable[[], object]:
    """The law that micro-batches add up, on one batch cut after its first row."""
    law = laws.test_parts_of_a_step_add_up_to_the_step.hypothesis.inner_test
    return partial(law, name=case_of(name), over=over, size=(0, 4, 6), cut=1)


def trains(name: str) -> Callable[[], object]:
    """The law that nothing but the policy is trained."""
    return partial(laws.test_losses_train_the_policy_and_nothing_else, case_of(name))


def case_of(name: str) -> str:
    """The first case of a function in the tests of laws, or the one that has these settings too."""
    function, *settings = name.split()
    matches = (key for key, case in laws.EVERY.items() if case.name == function)
    return next(key for key in matches if set(settings) <= set(key.split()))


MUTANTS = [
    # likelihood
    Mutant("flipped sign", "likelihood.py", "on_mask(mask, -logp)", "on_mask(mask, logp)", surrogate.test_cross_entropy_table),
    Mutant("forgotten mask", "likelihood.py", "(loss,) = on_mask(mask, -logp)", "loss = -logp", off_mask("cross_entropy")),
    # surrogate
    Mutant("flipped sign of A", "surrogate.py", "logp, cost = on_mask(mask, logp, -advantage", "logp, cost = on_mask(mask, logp, advantage", surrogate.test_reinforce_table),
    Mutant("A carries gradient", "surrogate.py", "on_mask(mask, logp, -advantage.detach())", "on_mask(mask, logp, -advantage)", trains("reinforce")),
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
    Mutant("unscorable as reward 0", "advantage.py", "scorable = rewards.isfinite()\n    _, member", "rewards = rewards.nan_to_num(0.0, 0.0)\n    scorable = rewards.isfinite()\n    _, member", advantage.test_unscorable_rewards_leave_the_baseline_alone),
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
    # entropy
    Mutant("bonus for penalty", "entropy.py", "on_mask(mask, coef * entropy)", "on_mask(mask, -coef * entropy)", entropy.test_entropy_loss_table),
    Mutant("lowest for highest", "masking.py", "ranked.argsort(descending=True", "ranked.argsort(descending=False", entropy.test_high_entropy_tokens_table),
    Mutant("fraction of all tokens", "entropy.py", "share(fraction, mask.sum())", "share(fraction, torch.tensor(mask.numel()))", entropy.test_high_entropy_tokens_table),
    Mutant("rounded down", "masking.py", "(count * billionths + 10**9 - 1) // 10**9", "(count * billionths) // 10**9", entropy.test_high_entropy_tokens_table),
    Mutant("rounded up in floats", "masking.py", "(count * billionths + 10**9 - 1) // 10**9", "(count.double() * fraction).ceil()", entropy.test_high_entropy_tokens_counts_exactly),
    Mutant("order for rank", "masking.py", "rank[order] = torch.arange(len(order), device=order.device)", "rank = order", entropy.test_high_entropy_tokens_table),
    Mutant("masked tokens ranked too", "masking.py", "torch.where(mask, values.detach(), -torch.inf).flatten()", "values.detach().flatten()", off_mask("high_entropy_tokens")),
    Mutant("advantage not centred", "entropy.py", "(advantage - advantage.sum() / count)", "advantage", entropy.test_token_covariance_table),
    Mutant("mean over the padding too", "entropy.py", "count = mask.sum().clamp(min=1)", "count = mask.numel()", entropy.test_token_covariance_table),
    Mutant("fit: sign of a", "entropy.py", "RewardEntropyFit(-slope.item()", "RewardEntropyFit(slope.item()", entropy.test_fit_reward_entropy_recovers_a_law),
    Mutant("fit: linear in H", "entropy.py", 'entropy.detach().to("cpu", torch.float64).exp()', 'entropy.detach().to("cpu", torch.float64)', entropy.test_fit_reward_entropy_recovers_a_law),
    Mutant("fit: ceiling at exp(H) = 0", "entropy.py", "(slope + b).item()", "b.item()", entropy.test_fit_reward_entropy_recovers_a_law),
    Mutant("fit: n for n - 2", "entropy.py", "square().sum() / (n - 2)", "square().sum() / n", entropy.test_fit_reward_entropy_by_hand),
    Mutant("fit: covariance of the slope", "entropy.py", "[1 / spread, mean / spread, mean / spread,", "[1 / spread, -mean / spread, -mean / spread,", entropy.test_covariance_of_the_fit_is_the_spread_over_repetitions),
    # masking
    Mutant("metric counts the padding", "masking.py", "return kept.sum(), mask.sum().to(dtype)", "return kept.sum(), torch.tensor(float(mask.numel()))", surrogate.test_ppo_clip_metrics_count_what_binds),
    Mutant("metric sums the padding", "masking.py", "    (kept,) = on_mask(mask, values.detach().to(dtype))", "    kept = values.detach().to(dtype)", surrogate.test_cispo_table),
    # likelihood, weighted
    Mutant("printed without the minus", "likelihood.py", "-(weight * logp + (1 - weight) * logp_dummy)", "weight * logp + (1 - weight) * logp_dummy", likelihood.test_weighted_cross_entropy_table),
    Mutant("weights swapped", "likelihood.py", "-(weight * logp + (1 - weight) * logp_dummy)", "-((1 - weight) * logp + weight * logp_dummy)", likelihood.test_training_with_the_dummy_ends_at_weight_times_behaviour),
    Mutant("no dummy", "likelihood.py", "-(weight * logp + (1 - weight) * logp_dummy)", "-weight * logp + 0 * logp_dummy", likelihood.test_training_with_the_dummy_ends_at_weight_times_behaviour),
    Mutant("dummy at full weight", "likelihood.py", "(1 - weight) * logp_dummy)", "logp_dummy)", likelihood.test_a_random_weight_counts_by_its_mean),
    Mutant("weight carries gradient", "likelihood.py", "on_mask(mask, logp, logp_dummy, weight.detach())", "on_mask(mask, logp, logp_dummy, weight)", trains("weighted_cross_entropy")),
    Mutant("spread over the token itself too", "likelihood.py", "(actions * logp_mean - logp) / (actions - 1)", "logp_mean", likelihood.test_uniform_cross_entropy_table),
    Mutant("divided by K", "likelihood.py", "(actions * logp_mean - logp) / (actions - 1)", "(actions * logp_mean - logp) / actions", likelihood.test_training_with_the_uniform_spread_ends_elsewhere),
    Mutant("observations without their weight", "likelihood.py", "TokenLoss(coef * loss", "TokenLoss(loss", likelihood.test_observation_loss_table),
    Mutant("metric of observations with the weight", "likelihood.py", "metric(loss, observed)", "metric(coef * loss, observed)", likelihood.test_observation_loss_table),
    # qsft
    Mutant("value not divided by the data", "qsft.py", "torch.where(supported, logp_value, -math.inf) - torch.where(supported, logp_behaviour, 0.0)", "torch.where(supported, logp_value, -math.inf)", partial(qsft.test_with_the_dummy_the_ratio_is_the_optimal_value, 0)),
    Mutant("mean for maximum", "qsft.py", "min_behaviour).amax(dim=-1)", "min_behaviour).mean(dim=-1)", qsft.test_qsft_target_table),
    Mutant("no discount", "qsft.py", "reward.detach() + gamma * value", "reward.detach() + value", partial(qsft.test_with_the_dummy_the_ratio_is_the_optimal_value, 0)),
    Mutant("target not held to 1", "qsft.py", ".clamp(0, 1)", "", qsft.test_qsft_target_table),
    Mutant("ratio not held to 1", "qsft.py", "log_ratio.clamp(max=0).exp()", "log_ratio.exp()", qsft.test_qsft_target_table),
    Mutant("rare actions not left out", "qsft.py", " & (logp_behaviour >= floor)", "", qsft.test_qsft_target_table),
    Mutant("unsupported actions taken", "qsft.py", "(logp_behaviour > -math.inf) & (logp_behaviour >= floor)", "logp_behaviour >= floor", qsft.test_qsft_target_leaves_out_what_the_data_never_does),
    Mutant("forms swapped", "qsft.py", 'if form == "probability" else', 'if form == "ratio" else', qsft.test_qsft_policy_table),
    Mutant("data's policy left out", "qsft.py", "(logp_behaviour + beta * tilt)", "(beta * tilt)", qsft.test_qsft_policy_table),
    Mutant("not normalised", "qsft.py", "(logp_behaviour + beta * tilt).log_softmax(dim=-1)", "logp_behaviour + beta * tilt", qsft.test_qsft_policy_table),
    Mutant("expectile upside down", "qsft.py", "(advantage < 0)", "(advantage >= 0)", qsft.test_ilql_loss_table),
    Mutant("target network trained", "qsft.py", "logit_target.detach(), logit_second_target.detach()", "logit_target, logit_second_target", trains("ilql_loss")),
    Mutant("target trained", "qsft.py", "value, weight.detach())", "value, weight)", trains("ilql_loss")),
    Mutant("the larger of two values", "qsft.py", "torch.minimum(target", "torch.maximum(target", qsft.test_ilql_loss_table),
    Mutant("one head untrained", "qsft.py", "errors = error + (second - weight).square()", "errors = error", qsft.test_ilql_loss_table),
    Mutant("unseen tokens pushed up", "qsft.py", "expectile - conservative * logp", "expectile + conservative * logp", qsft.test_ilql_loss_table),
    # importance
    Mutant("ratio upside down", "importance.py", "log_ratio = logp_old - logp_gen", "log_ratio = logp_gen - logp_old", importance.test_importance_weight_table),
    Mutant("not truncated", "importance.py", ", math.log(high))", ", math.inf)", importance.test_importance_weight_table),
    Mutant("not bounded below", "importance.py", "math.log(low) if low > 0 else -math.inf", "-math.inf", importance.test_importance_weight_table),
    Mutant("truncated for dropped", "importance.py", "mask & (bounded == log_ratio)", "mask", importance.test_importance_weight_table),
    Mutant("mean over the sequence for its product", "importance.py", "log_ratio.sum(dim=1, keepdim=True)", "log_ratio.mean(dim=1, keepdim=True)", importance.test_unbounded_sequence_weights_are_exact_and_nothing_else_is),
    Mutant("sequence weights per token", "importance.py", 'if ratio == "sequence":', "if False:", importance.test_unbounded_sequence_weights_are_exact_and_nothing_else_is),
    Mutant("each token bounded before the product", "importance.py", "log_ratio = logp_old - logp_gen", "log_ratio = (logp_old - logp_gen).clamp(max=math.log(high))", importance.test_importance_weight_table),
    Mutant("forgotten mask", "importance.py", "    logp_old, logp_gen = on_mask(mask, logp_old.detach(), logp_gen.detach())\n", "    logp_old = logp_old.detach()\n", off_mask("importance_weight ratio=sequence")),
    Mutant("carries gradient", "importance.py", "on_mask(mask, logp_old.detach(), logp_gen.detach())", "on_mask(mask, logp_old, logp_gen)", importance.test_importance_weight_table),
    # gaussian
    Mutant("first deviation for the second", "gaussian.py", "((mean_p - mean_q) / std_q)", "((mean_p - mean_q) / std_p)", gaussian.test_gaussian_kl_table),
    Mutant("no half in the distance", "gaussian.py", "std_q).square() / 2 + width", "std_q).square() + width", partial(gaussian.test_equations_38_to_44, 5)),
    Mutant("direction of the width", "gaussian.py", "log_ratio = std_p.log() - std_q.log()", "log_ratio = std_q.log() - std_p.log()", gaussian.test_gaussian_kl_table),
    Mutant("variance not squared", "gaussian.py", "torch.expm1(2 * log_ratio) / 2", "torch.expm1(log_ratio)", partial(gaussian.test_gaussians_agree_with_numerical_integration, 0)),
    Mutant("exp for expm1", "gaussian.py", "torch.expm1(2 * log_ratio) / 2 - log_ratio", "((std_p / std_q).square() - 1) / 2 - (std_p / std_q).log()", gaussian.test_kl_keeps_its_digits_near_zero),
    Mutant("mean over coordinates", "gaussian.py", "+ width).sum(dim=-1)", "+ width).mean(dim=-1)", gaussian.test_gaussian_kl_table),
    Mutant("density: mean over coordinates", "gaussian.py", "math.log(2 * math.pi) / 2).sum(dim=-1)", "math.log(2 * math.pi) / 2).mean(dim=-1)", gaussian.test_gaussian_logp_table),
    Mutant("density: no log std", "gaussian.py", " + std.log() + math", " + 0 * std.log() + math", gaussian.test_gaussian_logp_table),
    Mutant("density: variance for deviation", "gaussian.py", "((sample - mean) / std).square() / 2", "(sample - mean).square() / std / 2", partial(gaussian.test_gaussians_agree_with_numerical_integration, 0)),
    # covariance
    Mutant("smallest for largest", "covariance.py", "largest(covariance, mask, share", "largest(-covariance, mask, share", covariance.test_kl_cov_tokens_table),
    Mutant("largest |covariance|", "covariance.py", "largest(covariance, mask, share", "largest(covariance.abs(), mask, share", partial(covariance.test_kl_cov_tokens_agree_with_oracle, 0, "0.3")),
    Mutant("fraction of the padding too", "covariance.py", "largest(covariance, mask, share(fraction, mask.sum()))", "largest(covariance, mask, share(fraction, torch.tensor(mask.numel())))", partial(covariance.test_kl_cov_tokens_agree_with_oracle, 0, "0.3")),
    Mutant("largest for drawn", "covariance.py", "largest(drawn(mask, generator), eligible, share", "largest(covariance, eligible, share", covariance.test_clip_cov_tokens_are_drawn_evenly),
    Mutant("fraction of the eligible", "covariance.py", "largest(drawn(mask, generator), eligible, share(fraction, mask.sum()))", "largest(drawn(mask, generator), eligible, share(fraction, eligible.sum()))", covariance.test_clip_cov_tokens_table),
    Mutant("no upper end to the band", "covariance.py", " & (covariance <= high)", "", covariance.test_clip_cov_tokens_table),
    Mutant("no lower end to the band", "covariance.py", "mask & (covariance >= low) & ", "mask & ", covariance.test_clip_cov_tokens_table),
    Mutant("ends left out", "covariance.py", "(covariance >= low) & (covariance <= high)", "(covariance > low) & (covariance < high)", covariance.test_clip_cov_tokens_table),
    Mutant("generator ignored", "masking.py", "generator=generator, device", "device", covariance.test_clip_cov_tokens_follow_their_generator),
    Mutant("draw depends on the padding", "masking.py", "draw[mask.flatten().cumsum(0) - 1].view_as(mask)", "draw.view_as(mask)", off_mask("clip_cov_tokens")),
    Mutant("clip_cov: keeps what to drop", "covariance.py", "mask & ~dropped, clip_low", "mask & dropped, clip_low", covariance.test_clip_cov_table),
    Mutant("clip_cov: drops nothing", "covariance.py", "mask & ~dropped, clip_low", "mask, clip_low", covariance.test_clip_cov_table),
    Mutant("clip_cov: bounds swapped", "covariance.py", "clip_low=clip_low, clip_high=clip_high", "clip_low=clip_high, clip_high=clip_low", partial(covariance.test_losses_agree_with_oracles_and_have_their_gradients, 0)),
    Mutant("kl_cov: rewards distance", "covariance.py", "free.loss + coef * distance", "free.loss - coef * distance", covariance.test_kl_cov_table),
    Mutant("kl_cov: coef forgotten", "covariance.py", "free.loss + coef * distance", "free.loss + distance", covariance.test_kl_cov_table),
    Mutant("kl_cov: penalises everyone", "covariance.py", "held = mask & penalised", "held = mask", covariance.test_kl_cov_table),
    Mutant("kl_cov: square for absolute", "covariance.py", "(new - old).abs()", "(new - old).square()", covariance.test_kl_is_a_kl_and_absolute_is_not),
    Mutant("kl_cov: signed log-ratio", "covariance.py", "(new - old).abs()", "(new - old)", covariance.test_kl_cov_table),
    Mutant("kl_cov: the other KL", "covariance.py", 'divergence="forward", logp_old=logp_old', 'divergence="reverse", logp_old=logp_old', covariance.test_kl_is_a_kl_and_absolute_is_not),
    Mutant("kl_cov: KL without the ratio", "covariance.py", 'divergence="forward", logp_old=logp_old', 'divergence="forward"', covariance.test_kl_is_a_kl_and_absolute_is_not),
    Mutant("kl_cov: clipped", "covariance.py", "clip_low=1, clip_high=math.inf", "clip_low=0.2, clip_high=0.2", covariance.test_kl_cov_table),
    Mutant("forecast: sign", "entropy.py", "return -step * (p * centred", "return step * (p * centred", covariance.test_predicted_entropy_change_table),
    Mutant("forecast: plain and natural swapped", "entropy.py", 'if gradient == "plain":', 'if gradient == "natural":', partial(covariance.test_predicted_entropy_change_is_what_happens, "plain", 50)),
    Mutant("forecast: advantage not centred", "entropy.py", "push = advantage - (p * advantage).sum(dim=-1, keepdim=True)", "push = advantage", covariance.test_predicted_entropy_change_needs_no_baseline_and_minds_no_impossible_action),
    Mutant("forecast: log π not centred", "entropy.py", "centred = logp - (p * logp).sum(dim=-1, keepdim=True)", "centred = logp", covariance.test_predicted_entropy_change_table),
    Mutant("forecast: 0 times inf", "entropy.py", "    logp = torch.where(p > 0, logp, 0.0)", "    logp = logp", covariance.test_predicted_entropy_change_needs_no_baseline_and_minds_no_impossible_action),
    # preference
    Mutant("answers swapped", "preference.py", "-logsigmoid(beta * margin)", "-logsigmoid(-beta * margin)", preference.test_dpo_table),
    Mutant("beta forgotten", "preference.py", "-logsigmoid(beta * margin)", "-logsigmoid(margin)", preference.test_dpo_ends_at_the_policy_that_is_best_under_reward_and_kl),
    Mutant("no reference", "preference.py", "margin = (logp_chosen - logp_ref_chosen.detach()) - (logp_rejected - logp_ref_rejected.detach())", "margin = logp_chosen - logp_rejected", preference.test_at_the_start_the_loss_is_ln_2),
    Mutant("reference carries gradient", "preference.py", "logp_ref_chosen.detach()", "logp_ref_chosen", preference.test_dpo_trains_the_policy_and_not_the_reference),
    Mutant("ipo: beta for 1/(2 beta)", "preference.py", "margin - 1 / (2 * beta)", "margin - beta / 2", partial(preference.test_dpo_agrees_with_oracle_and_has_its_gradient, "ipo", 0.0, 0.1)),
    Mutant("cdpo: noise with the wrong sign", "preference.py", "loss + label_noise * beta * margin", "loss - label_noise * beta * margin", preference.test_dpo_table),
    Mutant("cdpo: noise ignored", "preference.py", "loss + label_noise * beta * margin if label_noise else loss", "loss", preference.test_dpo_table),
    Mutant("log of a sigmoid", "preference.py", "-logsigmoid(beta * margin)", "-(beta * margin).sigmoid().log()", preference.test_dpo_stays_finite_far_away),
    Mutant("bradley_terry: margin helps", "preference.py", "reward_chosen - reward_rejected - margin", "reward_chosen - reward_rejected + margin", preference.test_bradley_terry_table),
    Mutant("bradley_terry: loser wins", "preference.py", "-logsigmoid(reward_chosen - reward_rejected", "-logsigmoid(reward_rejected - reward_chosen", preference.test_bradley_terry_table),
    # regret
    Mutant("KL raises the score", "regret.py", "discount * (logp - future)", "discount * (logp + future)", partial(regret.test_the_score_under_the_optimal_policy_is_minus_the_regret, 0)),
    Mutant("KL of the state itself counted", "regret.py", "return (mask.cumsum(dim=1) - 1).clamp(min=0)", "return mask.cumsum(dim=1)", regret.test_policy_labeled_preference_table),
    Mutant("holes count as actions", "regret.py", "return (mask.cumsum(dim=1) - 1).clamp(min=0)", "return torch.arange(mask.shape[1]).expand_as(mask)", regret.test_policy_labeled_preference_table),
    Mutant("realised for expected", "regret.py", 'return kl if label == "expected" else', "return", partial(regret.test_the_score_under_the_optimal_policy_is_minus_the_regret, 0)),
    Mutant("expected for realised", "regret.py", 'return kl if label == "expected" else', 'return kl if label != "pseudo" else', regret.test_policy_labeled_preference_table),
    Mutant("pseudo-label with the wrong sign", "regret.py", "kl = -logp\n", "kl = logp\n", regret.test_policy_labeled_preference_table),
    Mutant("no discount", "regret.py", "(discount * (logp - future))", "(logp - future)", regret.test_policy_labeled_preference_table),
    Mutant("forgotten mask", "regret.py", "    logp, future = on_mask(mask, logp, future)\n", "", partial(regret.test_padding_and_order_do_not_matter_and_inputs_stay, "realised")),
    Mutant("bias on the wrong side", "regret.py", "-logsigmoid(chosen - rejected_weight * rejected)", "-logsigmoid(rejected_weight * chosen - rejected)", regret.test_rejected_weight_table),
    Mutant("the worse preferred", "regret.py", "-logsigmoid(chosen - rejected_weight * rejected)", "-logsigmoid(rejected_weight * rejected - chosen)", regret.test_cpl_of_log_ratios_is_dpo),
    # semantic
    Mutant("count for share", "semantic.py", "share = count.double() / size[home]", "share = count.double()", semantic.test_semantic_table),
    Mutant("groups pooled", "semantic.py", "torch.unique(group * width + cluster,", "torch.unique(0 * group + cluster,", semantic.test_semantic_table),
    Mutant("Σ p log p by the share", "semantic.py", "share * count.double().log()", "share * share.log()", semantic.test_semantic_table),
    Mutant("no answer agrees with no answer", "semantic.py", "    cluster = torch.where(cluster < 0, alone, cluster)\n", "", partial(semantic.test_semantic_agrees_with_oracle.hypothesis.inner_test, [(-1, 0), (-2, 0), (-1, 0), (1, 0)], (None, None))),
    Mutant("no answer rewarded", "semantic.py", "rewarded = cluster >= 0", "rewarded = cluster == cluster", semantic.test_semantic_table),
    Mutant("thresholds swapped", "semantic.py", "(entropy > low + _ROUNDING)", "(entropy < low + _ROUNDING)", semantic.test_thresholds_leave_out_whole_groups),
    Mutant("high ignored", "semantic.py", "(entropy < high - _ROUNDING)", "(entropy < math.inf)", semantic.test_thresholds_leave_out_whole_groups),
    Mutant("ends let in", "semantic.py", "(entropy < high - _ROUNDING)", "(entropy < high + _ROUNDING)", partial(semantic.test_ends_are_exact_for_every_size, 4)),
    # diffusion
    Mutant("reference's side of the KL", "diffusion.py", "gain + coef * kl", "gain - coef * kl", diffusion.test_dpok_table),
    Mutant("penalty without 1/σ²", "diffusion.py", "kl = gaussian_kl(mean, std, mean_ref, std)", "kl = (mean - mean_ref).square().sum(dim=-1)", diffusion.test_mean_gradients_are_those_of_the_expected_reward_and_of_the_kl),
    Mutant("mean over coordinates", "gaussian.py", "math.log(2 * math.pi) / 2).sum(dim=-1)", "math.log(2 * math.pi) / 2).mean(dim=-1)", diffusion.test_a_mean_over_coordinates_is_another_ratio),
    Mutant("gradient through the sample", "diffusion.py", "logp = gaussian_logp(sample.detach(), mean, std.detach())", "logp = gaussian_logp(sample, mean, std.detach())", partial(diffusion.test_values_off_the_mask_are_not_read_and_only_the_mean_is_trained, diffusion.ddpo)),
    Mutant("gradient through the reference", "diffusion.py", "mean_ref, std = mean_ref.detach(), std.detach()", "std = std.detach()", partial(diffusion.test_values_off_the_mask_are_not_read_and_only_the_mean_is_trained, diffusion.dpok)),
    Mutant("0 for a deviation off the mask", "diffusion.py", "torch.where(mask[..., None], value, 1.0)", "torch.where(mask[..., None], value, 0.0)", diffusion.test_dpok_table),
    Mutant("bounds swapped", "diffusion.py", "clip_low=clip_low, clip_high=clip_high)", "clip_low=clip_high, clip_high=clip_low)", partial(diffusion.test_losses_agree_with_oracles_and_have_their_gradients, 0)),
    # measures
    Mutant("0 log 0 is NaN", "measures.py", "torch.where(support, logp_p, 0.0) - torch.where(support, logp_q, 0.0)", "logp_p - logp_q", measures.test_measures_where_probabilities_are_zero),
    Mutant("direction turned", "measures.py", "(logp_p.exp() * gap)", "(logp_q.exp() * -gap)", partial(measures.test_measures_agree_with_oracles_and_have_their_gradients, "nats")),
    Mutant("bits for nats", "measures.py", 'if unit == "bits" else nats', 'if unit == "nats" else nats', measures.test_measures_table),
    Mutant("times log 2", "measures.py", "nats / math.log(2)", "nats * math.log(2)", measures.test_measures_table),
    Mutant("entropy of the second", "measures.py", "return categorical_cross_entropy(logp, logp, unit=unit)", "return categorical_cross_entropy(logp, 0 * logp, unit=unit)", partial(measures.test_cross_entropy_is_entropy_and_kl.hypothesis.inner_test, 0, "nats")),
    Mutant("p and q swapped", "measures.py", "(logp_p.exp() * cost)", "(logp_q.exp() * -logp_p)", partial(measures.test_cross_entropy_is_entropy_and_kl.hypothesis.inner_test, 0, "nats")),
    Mutant("cross-entropy: 0 times inf", "measures.py", "torch.where(logp_p > -torch.inf, -logp_q, 0.0)", "-logp_q", measures.test_measures_where_probabilities_are_zero),
    Mutant("sft: sign", "measures.py", "logp.exp() - logp_data.exp()", "logp_data.exp() - logp.exp()", measures.test_logit_gradients_table),
    Mutant("reinforce: not weighted by π", "measures.py", "return -p * (advantage", "return -(advantage", measures.test_reinforce_does_not_move_what_is_never_sampled),
    Mutant("reinforce: no baseline", "measures.py", "(advantage - (p * advantage).sum(dim=-1, keepdim=True))", "advantage", measures.test_means_of_one_sample_gradients),
    # tokens
    Mutant("highest for lowest", "tokens.py", "largest(-entropy, mask", "largest(entropy, mask", choices.test_low_entropy_tokens_table),
    Mutant("complement of the complement", "tokens.py", "largest(-entropy, mask, share(fraction,", "mask & ~largest(entropy, mask, share(1 - fraction + 1e-9,", choices.test_low_entropy_tokens_table),
    Mutant("fraction of the padding too", "tokens.py", "largest(drawn(mask, generator), mask, share(fraction, mask.sum()))", "largest(drawn(mask, generator), mask, share(fraction, torch.tensor(mask.numel())))", choices.test_random_tokens_are_as_many_as_asked_and_drawn_evenly),
    Mutant("the first, not random ones", "tokens.py", "largest(drawn(mask, generator), mask", "largest(torch.zeros(mask.shape), mask", choices.test_random_tokens_are_as_many_as_asked_and_drawn_evenly),
    Mutant("each token by its own coin", "tokens.py", "largest(drawn(mask, generator), mask, share(fraction, mask.sum()))", "mask & (drawn(mask, generator) < fraction)", choices.test_random_tokens_are_as_many_as_asked_and_drawn_evenly),
    Mutant("generator ignored", "tokens.py", "drawn(mask, generator), mask", "drawn(mask, None), mask", choices.test_random_tokens_follow_their_generator),
    Mutant("random: draw depends on the padding", "tokens.py", "largest(drawn(mask, generator), mask", "largest(torch.rand(mask.shape, generator=generator), mask", off_mask("random_tokens")),
    # exploration
    Mutant("max for min", "exploration.py", "torch.minimum(alpha * entropy.clamp(min=0)", "torch.maximum(alpha * entropy.clamp(min=0)", exploration.test_entropy_shaped_table),
    Mutant("no bound by |A|", "exploration.py", "torch.minimum(alpha * entropy.clamp(min=0), known.abs() / kappa)", "alpha * entropy", exploration.test_entropy_shaped_table),
    Mutant("A for |A|", "exploration.py", "known.abs() / kappa", "known / kappa", exploration.test_entropy_shaped_table),
    Mutant("shaping away from 0", "exploration.py", "known + shaping", "known + known.sign() * shaping", exploration.test_entropy_shaped_table),
    Mutant("shaping subtracted", "exploration.py", "known + shaping", "known - shaping", exploration.test_entropy_shaped_table),
    Mutant("bounds swapped", "exploration.py", "known + shaping, mask, clip_low=clip_low, clip_high=clip_high", "known + shaping, mask, clip_low=clip_high, clip_high=clip_low", partial(exploration.test_losses_agree_with_oracles_and_have_their_gradients, 0)),
    Mutant("sides swapped", "exploration.py", "entropy < (1 - low) * old, entropy - old > high * old", "entropy < (1 - high) * old, entropy - old > low * old", exploration.test_entropy_ratio_clip_table),
    Mutant("in nats, not by ratio", "exploration.py", "entropy - old > high * old", "entropy - old > high", exploration.test_entropy_ratio_clip_table),
    Mutant("keeps what left", "exploration.py", "mask & ~(fell | rose)", "mask & (fell | rose)", exploration.test_entropy_ratio_clip_table),
    Mutant("only the fall", "exploration.py", "mask & ~(fell | rose)", "mask & ~fell", exploration.test_entropy_ratio_clip_table),
    Mutant("ends left out", "exploration.py", "entropy < (1 - low) * old", "entropy <= (1 - low) * old", exploration.test_entropy_ratio_clip_table),
    # reduce
    Mutant("wrong denominator", "reduce.py", "total, count = loss.sum(), lengths.sum()", "total, count = loss.sum(), torch.tensor(loss.numel())", reduce.test_reduce_tokens_averages_over_tokens_unless_told),
    Mutant("rows without a token counted", "reduce.py", "(lengths > 0).sum()", "torch.tensor(len(lengths))", cut("reinforce", "sequences")),
    Mutant("denominator ignored", "reduce.py", "count if denominator is None else denominator", "count", cut("reinforce", "tokens")),
    Mutant("denominator ignored by constant", "reduce.py", "count if denominator is None else denominator", "count", cut("reinforce", "constant")),
    Mutant("token mean for sequences", "reduce.py", 'if over == "sequences":', "if False:", partial(reduce.test_reduce_tokens_table, "sequences", None, 5.0, [[1 / 6] * 3, [1 / 2, 0, 0], [0] * 3])),
    Mutant("0 / 0", "reduce.py", "torch.where(divisor == 0, 1, divisor)", "divisor", partial(reduce.test_nothing_on_the_mask_gives_zero_and_runs_backward, "tokens", None, (2, 3))),
    Mutant("forgotten mask", "reduce.py", "    (loss,) = on_mask(mask, loss)\n", "", reduce.test_reduce_tokens_averages_over_tokens_unless_told),
]  # fmt: skip


MUTANTS += [mutant for table in provided("MUTANTS") for mutant in table]


@pytest.mark.parametrize("name", functions())
def test_every_function_has_a_mutant(name: str) -> None:
    sources = reached(getattr(O, name))
    assert any(mutant.old in sources.get(mutant.file, "") for mutant in MUTANTS), (
        f"no mutant changes {name}: its own test file in tests/objectives must provide one, as "
        'MUTANTS = [Mutant("flipped sign", "FILE.py", "old", "new", test_that_notices)]'
    )


def reached(function: Callable[..., object]) -> dict[str, str]:
    """Source of a function and of those of its own module that it calls, by file."""
    module = inspect.getmodule(function)
    assert module is not None
    texts, waiting = {}, [function]
    while waiting:
        code = waiting.pop().__code__
        texts[code.co_name] = inspect.getsource(code)
        inside = [getattr(module, called, None) for called in code.co_names]
        waiting += [f for f in inside if inspect.isfunction(f) and inspect.getmodule(f) is module]
        waiting = [f for f in waiting if f.__name__ not in texts]
    return {Path(module.__file__ or "").name: "".join(texts.values())}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.mistake}")
def test_mutant_is_killed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (Path(O.__file__).parent / mutant.file).read_text()
    assert source.count(mutant.old) >= 1, "the source has changed: bring the mutant up to date"
    assert source.count(mutant.old) == 1, "ambiguous: quote more of the line"
    module = ModuleType("mutant")
    exec(compile(source.replace(mutant.old, mutant.new), f"mutant of {mutant.file}", "exec"), module.__dict__)
    mutant.killer()  # the real source passes
    users = [user for name, user in sys.modules.items() if name.startswith(O.__name__)]
    for name, function in vars(module).items():
        if inspect.isfunction(function) and function.__module__ == "mutant":
            original = getattr(sys.modules[f"{O.__name__}.{mutant.file.removesuffix('.py')}"], name)
            for user in users:
                if getattr(user, name, None) is original:
                    monkeypatch.setattr(user, name, function)
    with pytest.raises(AssertionError):
        mutant.killer()
