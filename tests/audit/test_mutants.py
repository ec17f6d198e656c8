"""The auditor audited: each mutant is one plausible mistake in it, and the test beside it must notice.

A mutant is a file of ``klent.audit`` with one string replaced, run in a module of its own whose functions,
classes and constants then stand in for the real ones wherever those were imported.
"""

# ruff: noqa: E501 - a table is read across, one mutant a line

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from audit import test_candidates as candidates
from audit import test_certificate as certificate
from audit import test_command as command
from audit import test_divergences as divergences
from audit import test_expectation as expectation
from audit import test_fit as fit
from audit import test_flat as flat
from audit import test_groups as groups
from audit import test_peers as peers
from audit import test_placements as placements
from audit import test_problems as problems
from audit import test_reduction as reduction
from audit import test_sensitivity as sensitivity
from audit import test_worlds as worlds
from klent.audit.candidates import candidate_gradients
from klent.audit.peers import verl
from klent.audit.worlds import sample


class Mutant(NamedTuple):
    mistake: str
    file: str
    old: str
    new: str
    killer: Callable[[], object]


def place(name: str) -> Callable[[], object]:
    """The statement about one place of a KL penalty."""
    return partial(placements.test_places_are_named, name)


def derived(name: str) -> Callable[[], object]:
    """The statement about a loss that was derived from a candidate."""
    (case,) = (case for case in candidates.CASES if case[0].__name__ == name)
    return partial(candidates.test_a_loss_derived_from_a_candidate_is_recognised, case)


def problem(name: str) -> Callable[[], object]:
    """The sentence about a loss that cannot be audited."""
    case = next(case for case in problems.CASES if case[0].__name__ == name)
    return partial(problems.test_a_problem_is_a_sentence, case)


def flat_of_ppo() -> None:
    """Both sides of PPO's clip."""
    assert len(flat.flat_intervals(flat.wire(flat.O.ppo_clip, {}))) == 2


def flat_nothing() -> None:
    """No advice for what is clipped on purpose."""
    try:
        flat.test_nothing_is_said_of_what_is_right()
    except KeyError as error:
        raise AssertionError from error


def path_of(aim: str) -> Callable[[], object]:
    """The statement about a divergence along the policy's own sequences."""
    (placement,) = (placement for placement in divergences.DIVERGENCES if placement.aim == aim)
    return partial(divergences.test_what_is_called_exact_is, placement)


def verl_kl() -> None:
    """verl's kl_penalty, as its stand-in has it."""
    found = verl.audit_kl(peers.fake_kl_penalty, "k1", reward=True)
    assert found.on_policy.coefficients == pytest.approx({"reverse_kl": 1})


def verl_policy_loss() -> None:
    """verl's PPO, as its stand-in has it."""
    found = verl.audit_policy_loss(peers.fake_vanilla, peers.FakeActorConfig("", 1, 1), "vanilla")
    assert found.on_policy.coefficients == pytest.approx({"expected_reward": -1})


MUTANTS = [
    # candidates
    Mutant("reverse for forward", "measures.py", "return (p.exp() * (p - q)).sum(dim=-1)", "return (q.exp() * (q - p)).sum(dim=-1)", place("k2 in loss")),
    Mutant("forward for reverse", "measures.py", "return (q.exp() * (q - p)).sum(dim=-1)", "return (p.exp() * (p - q)).sum(dim=-1)", place("k3 in loss")),
    Mutant("weights of p, ratio of q", "measures.py", "return (q.exp() * (q - p)).sum(dim=-1)", "return (p.exp() * (q - p)).sum(dim=-1)", place("k3 in loss")),
    Mutant("directions swapped", "measures.py", '"reverse_kl": reverse_kl,\n    "forward_kl": forward_kl,\n    "total', '"reverse_kl": forward_kl,\n    "forward_kl": reverse_kl,\n    "total', place("k1 in reward to go")),
    Mutant("prefixes not frozen", "candidates.py", "return often @ measure(", "return scene.prefix_probability(parameters) @ measure(", place("k2 in loss")),
    Mutant("prefixes of the reference", "candidates.py", "kinds = {name: scene.policy}", "kinds = {name: scene.reference}", place("k2 in loss")),
    Mutant("the policy's prefixes for the behaviour's", "candidates.py", '"] = scene.behaviour', '"] = scene.policy', partial(placements.test_kl_in_loss_is_what_it_says, "reverse")),
    Mutant("behaviour for reference", "candidates.py", '_divergences(scene, scene.reference, "", measures.COMMON)', '_divergences(scene, scene.behaviour, "", measures.COMMON)', place("k3 in loss times number")),
    Mutant("reference for behaviour", "candidates.py", '_divergences(scene, scene.behaviour, "_old", kls)', '_divergences(scene, scene.reference, "_old", kls)', place("k1 in loss")),
    Mutant("sign of entropy", "measures.py", "return -(p.exp() * p).sum(dim=-1)", "return (p.exp() * p).sum(dim=-1)", partial(candidates.test_entropy_loss, 1.0)),
    Mutant("sign of a sequence's entropy", "candidates.py", "return measures.entropy(p, p)", "return -measures.entropy(p, p)", derived("sequence_entropy")),
    Mutant("total variation without the half", "measures.py", "abs().sum(dim=-1) / 2", "abs().sum(dim=-1)", derived("total_variation")),
    Mutant("reward of the behaviour", "candidates.py", "return scene.sequence_logp(parameters).exp() @ scene.reward", "return (scene.sequence_logp(parameters) * scene.sequence_logp(scene.behaviour).exp()) @ scene.reward", derived("reward_of_sequences")),
    Mutant("local reward without its ratio", "candidates.py", "((p - behaviour).exp() * earned)", "(p.exp() * earned)", derived("reward_of_tokens")),
    # worlds
    Mutant("sign in the softmax's slope", "worlds.py", " - p[:, None, :]", " + p[:, None, :]", partial(worlds.test_slopes_are_autograds, worlds.SCENES[5])),
    Mutant("slope of the entropy", "worlds.py", "-p * (logp + entropy[:, None])", "-p * (logp - entropy[:, None])", partial(worlds.test_slopes_are_autograds, worlds.SCENES[5])),
    Mutant("logp_old of the policy", "worlds.py", "logp_old = scene.token_logp(scene.behaviour)", "logp_old = scene.token_logp(scene.policy)", place("k3 in loss times rho")),
    Mutant("sampled from the reference", "worlds.py", "probability = scene.sequence_logp(scene.behaviour).exp()", "probability = scene.sequence_logp(scene.reference).exp()", place("k1 in loss")),
    Mutant("padding counts as a token", "worlds.py", "return torch.where(self.world.mask, logp, 0.0)", "return logp", worlds.test_nothing_leaks_from_the_padding),
    Mutant("advantage not centred", "worlds.py", "(scene.reward - probability @ scene.reward)", "scene.reward", worlds.test_on_policy_the_behaviour_is_the_policy),
    Mutant("no stop token", "worlds.py", "if stop and 0 in sequence", "if False", worlds.test_what_is_listed),
    # expectation
    Mutant("every sequence equally likely", "expectation.py", "slopes.of), listed.probability, slopes.dtype", "slopes.of), torch.full_like(listed.probability, 1 / len(listed.probability)), slopes.dtype", place("k1 in loss")),
    Mutant("entropy's slope forgotten", "expectation.py", "torch.where(mask, slope, 0.0)", "torch.where(mask, slope * (name == 'logp'), 0.0)", partial(candidates.test_entropy_loss, 1.0)),
    Mutant("pairs weighed by a sum", "expectation.py", "prod(dim=1)", "sum(dim=1)", partial(expectation.test_pairs_agree_with_single_completions, False)),
    Mutant("sum of a pair for its mean", "expectation.py", "gradients / 2 if loss.by_row else gradients", "gradients", partial(expectation.test_pairs_agree_with_single_completions, False)),
    Mutant("variance of a mean of two", "expectation.py", "item() * size", "item()", partial(expectation.test_pairs_agree_with_single_completions, False)),
    Mutant("second moment for variance", "expectation.py", "(gradients - mean).square()", "gradients.square()", partial(expectation.test_the_mean_and_the_variance_are_those_of_a_plain_sum, False)),
    # fit
    Mutant("loose tolerance", "fit.py", "EXACT = 1e-6", "EXACT = 1e-2", certificate.test_a_part_per_million_is_not_overlooked),
    Mutant("zero without a scale", "fit.py", "tolerance / 100 * scale:", "tolerance / 100:", fit.test_zero_is_measured_against_a_sample),
    Mutant("no single candidates", "fit.py", "if errors[best] <= tolerance:", "if False:", certificate.test_pinned_examples),
    Mutant("no combinations", "fit.py", "range(2, min(MOST, len(names)) + 1)", "range(0)", certificate.test_a_combination_is_taken_apart),
    Mutant("too many terms", "fit.py", "MOST = 4", "MOST = 5", fit.test_several_up_to_four),
    Mutant("weights upside down", "fit.py", "torch.linalg.lstsq(basis, gradient[:, None]", "-torch.linalg.lstsq(basis, gradient[:, None]", certificate.test_pinned_examples),
    Mutant("prefixes not told", "fit.py", 'prefixes = "behaviour" if met else "policy"', 'prefixes = "policy"', partial(placements.test_kl_in_loss_is_what_it_says, "reverse")),
    Mutant("several rare ones in a combination", "fit.py", "usual = {name: vector for name, vector in candidates.items() if name not in odd}", "usual = candidates", fit.test_at_most_one_rare_candidate),
    Mutant("a rare one is the nearest", "fit.py", 'min(usual or errors.values())', 'min(errors.values())', fit.test_at_most_one_rare_candidate),
    Mutant("bias relative to the loss", "fit.py", "(norm := candidate.norm())", "(norm := gradient.norm())", fit.test_distances),
    # measures and streams
    Mutant("chi-squared without its one", "measures.py", "(2 * p - q).exp().sum(dim=-1) - 1", "(2 * p - q).exp().sum(dim=-1)", divergences.test_the_measures_are_those_of_their_formulas),
    Mutant("the middle of logarithms", "measures.py", "torch.logaddexp(p, q) - math.log(2)", "(p + q) / 2", divergences.test_the_measures_are_those_of_their_formulas),
    Mutant("Hellinger upside down", "measures.py", "return 1 - ((p + q) / 2)", "return ((p + q) / 2)", divergences.test_the_measures_are_those_of_their_formulas),
    Mutant("alpha for its complement", "measures.py", "(alpha * p + (1 - alpha) * q)", "((1 - alpha) * p + alpha * q)", divergences.test_the_measures_are_those_of_their_formulas),
    Mutant("skew on the other side", "measures.py", "p + math.log(SKEW), q + math.log(1 - SKEW)", "p + math.log(1 - SKEW), q + math.log(SKEW)", divergences.test_the_measures_are_those_of_their_formulas),
    Mutant("a path that stands still", "candidates.py", "return scene.prefix_probability(parameters) @", "return scene.prefix_probability(scene.policy) @", path_of("forward_kl_path")),
    Mutant("no slope through the normaliser", "worlds.py", "in_logits = of_logp - logp.exp() * of_logp.sum(dim=1, keepdim=True)", "in_logits = of_logp", partial(worlds.test_slopes_are_autograds, worlds.SCENES[5])),
    Mutant("distance to the reference", "worlds.py", "total_variation(logp, behaviour)", "total_variation(logp, reference)", worlds.test_the_distance_is_the_total_variation_to_the_sampler),
    # reduction
    Mutant("sequences not divided", "reduction.py", "return replace(loss, reduce=_sum_of_means)", "return loss", partial(reduction.test_reductions_agree_with_a_list_by_hand, 2)),
    Mutant("own length not counted", "reduction.py", "total = lengths[:, None] + torch.arange(len(others))", "total = 1 + torch.arange(len(others)).expand(len(lengths), -1)", partial(reduction.test_reductions_agree_with_a_list_by_hand, 2)),
    Mutant("one completion too many", "reduction.py", "for _ in range(size - 1):", "for _ in range(size):", partial(reduction.test_reductions_agree_with_a_list_by_hand, 2)),
    Mutant("a multiple for an explanation", "reduction.py", "weight = (one @ other) / (other @ other)", "weight = 0.0", reduction.test_k1_in_the_reward_is_the_sequences_kl_only_under_a_constant_divisor),
    Mutant("a function of two halved", "expectation.py", "gradients / 2 if loss.by_row else gradients", "gradients / 2", reduction.test_a_function_of_two_completions_is_its_own_gradient),
    # flat
    Mutant("a point for an interval", "flat.py", "if first == last:", "if False:", partial(flat.test_what_has_a_slope_everywhere_is_not_flat, flat.k3, {})),
    Mutant("ends not narrowed", "flat.py", "0.02, 16", "0.02, 0", flat.test_the_clip_of_ppo_has_a_side_for_each_sign),
    Mutant("signs of the advantage", "flat.py", "(1.0, -1.0) if", "(-1.0, 1.0, 1.0)[:1] if", flat_of_ppo),
    Mutant("a reward hides a clamp", "flat.py", '_intervals(loss, "logp_ref", 0.0)', '_intervals(loss, "logp_ref", 1.0)', flat.test_a_clamp_inside_a_sum_is_seen),
    Mutant("tokens of the padding", "flat.py", 'counted = streams["mask"] & (', 'counted = (', flat.test_the_share_is_that_of_the_sampled_tokens),
    Mutant("the ratio's other side", "flat.py", "moved = logp - log_ratio[:, None]", "moved = logp + log_ratio[:, None]", flat.test_the_share_is_that_of_the_sampled_tokens),
    # groups
    Mutant("population for the others", "groups.py", "math.comb(size - 1, k)", "math.comb(size, k)", groups.test_the_weight_of_the_reward_is_that_of_a_list_by_hand),
    Mutant("own reward among the others", "groups.py", "rewards[1, :, 0] = 1.0", "rewards[0, :, 0] = 1.0", groups.test_a_constant_factor_rescales_nothing),
    Mutant("direction not looked at", "groups.py", "or self.unexplained > SAME - 1", "", groups.test_two_answers_give_a_sign_and_so_another_direction),
    # advice
    Mutant("forward taken for right", "advice.py", 'follows == {"forward_kl_token"}', "False", flat.test_what_to_write_instead),
    Mutant("advice for PPO", "advice.py", "len(follows) == 1 and follows <= set(INSTEAD)", "len(follows) == 1", flat_nothing),
    # restoring
    Mutant("second order taken for first", "restoring.py", "near > 0.5 * far", "near > 0", partial(sensitivity.test_the_order_of_the_pull, 3)),
    Mutant("a reward taken for a pull", "restoring.py", " - expected_gradient(loss, without_pull).gradient", "", sensitivity.test_a_pull_is_measured_beside_a_reward),
    Mutant("a push taken for a pull", "restoring.py", "torch.dot(force, along).item()", "torch.dot(force, along).abs().item()", certificate.test_pinned_examples),
    Mutant("Fisher forgotten", "restoring.py", "(distance * stretch)", "distance", place("k2 in loss")),
    # sensitivity
    Mutant("NaN not tried", "sensitivity.py", "_off_mask(streams, stream, math.nan)", "_off_mask(streams, stream, 0.0)", sensitivity.test_nan_in_the_padding),
    Mutant("more padding not tried", "sensitivity.py", "for changed in (junk, wider):", "for changed in (junk,):", sensitivity.test_padding_that_is_read),
    Mutant("split never dependent", "sensitivity.py", "if not _close(plain, replace(plain, of=joined)):", "if False:", sensitivity.test_a_batch_mean_depends_on_the_split),
    Mutant("one state of the generator", "sensitivity.py", "loss.slopes(streams, seed=1)", "loss.slopes(streams)", sensitivity.test_randomness_is_noticed_and_leaves_the_generator_alone),
    Mutant("rounding of the inputs counted", "sensitivity.py", "rounded, exact = _try(loss, low), _try(loss, same)", "rounded, exact = _try(loss, low), _try(loss, streams)", sensitivity.test_few_bits),
    # call
    Mutant("inputs not copied", "call.py", "else value.clone()", "else value", sensitivity.test_inputs_that_are_changed),
    Mutant("generator not restored", "call.py", "torch.set_rng_state(state)", "pass", sensitivity.test_randomness_is_noticed_and_leaves_the_generator_alone),
    Mutant("NaN let through", "call.py", "if broken.any():", "if False:", problem("nan")),
    Mutant("scalars let through", "call.py", "if values.ndim == 0 or", "if False and", problem("scalar")),
    Mutant("order of positions", "names.py", 'POSITIONAL = ("logp", "logp_old", "logp_ref", "mask")', 'POSITIONAL = ("logp", "logp_ref", "logp_old", "mask")', certificate.test_arguments_by_position),
    Mutant("any four arguments by position", "call.py", "required == ordered[:4] and readable_by_position(required)", "required == ordered[:4]", certificate.test_arguments_by_position),
    Mutant("another library's reference for its sampler", "names.py", '"logp_ref": ("ref", "reference", "base")', '"logp_old": ("ref", "reference", "base")', certificate.test_names_of_both_vocabularies_give_the_same_certificate),
    # certificate
    Mutant("on-policy forgotten", "certificate.py", "scenes if off_policy else [scene.on_policy() for scene in scenes]", "scenes", certificate.test_pinned_examples),
    Mutant("always on-policy", "certificate.py", "scenes if off_policy else [", "[", place("k2 in loss")),
    Mutant("pairs forgotten", "certificate.py", 'if reaction.split == "dependent":', "if False:", certificate.test_a_loss_that_looks_at_the_whole_batch_is_given_pairs),
    Mutant("far is near", "certificate.py", "_witness(loss, far_apart()", "_witness(loss, one_position()", partial(placements.test_clamps_far_from_the_reference_are_seen, "k3")),
    Mutant("equal lengths only", "certificate.py", "joined = _Joined.of(equal + unequal)", "joined = _Joined.of(equal)", certificate.test_a_mean_over_each_completion_is_not_the_sum),
    # rewards, peers, picture
    Mutant("reward lowered", "rewards.py", "return reinforce(logp, advantage, mask).loss", "return -reinforce(logp, advantage, mask).loss", place("k1 in reward")),
    Mutant("only the token's own reward", "rewards.py", "if to_go else paid", "if not to_go else paid", place("k1 in reward to go")),
    Mutant("penalty for reward", "peers/verl.py", "return -penalty(logp, logp_ref, mask)", "return penalty(logp, logp_ref, mask)", verl_kl),
    Mutant("mean for sum", "peers/verl.py", "mean * response_mask.sum()", "mean", verl_policy_loss),
    Mutant("sign of the linear loss", "peers/linear.py", "slope * (value - value.detach())", "slope * (value.detach() - value)", verl_policy_loss),
    Mutant("ascent for descent", "picture.py", "-p * (gradient - p @ gradient)", "p * (gradient - p @ gradient)", command.test_the_field_of_the_reverse_kl_is_the_true_one),
]  # fmt: skip


_PASSED: set[str] = set()


def passes(killer: Callable[[], object]) -> bool:
    """Run a test against the real source; once, however many mutants it kills."""
    test, arguments = (killer.func, killer.args) if isinstance(killer, partial) else (killer, ())
    key = f"{test!r}{arguments!r}"
    if key not in _PASSED:
        killer()
        _PASSED.add(key)
    return True


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.mistake}")
def test_mutant_is_killed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "klent.audit." + mutant.file.removesuffix(".py").replace("/", ".")
    original = importlib.import_module(name)
    source = Path(original.__file__ or "").read_text()
    assert source.count(mutant.old) >= 1, "the source has changed: bring the mutant up to date"
    assert source.count(mutant.old) == 1, "ambiguous: quote more of the line"
    module = ModuleType("mutant")
    exec(compile(source.replace(mutant.old, mutant.new), f"mutant of {mutant.file}", "exec"), module.__dict__)
    assert passes(mutant.killer)  # with the real source
    monkeypatch.setattr(placements, "audited", placements.audited.__wrapped__)  # not the real certificates
    forget()
    pairs = [
        (key, getattr(original, key), value)
        for key, value in vars(module).items()
        if is_own(key, value, original)
    ]
    for name, user in list(sys.modules.items()):
        if name.split(".")[0] == "audit" or name.startswith("klent.audit"):
            for key, old, new in pairs:
                for own in [k for k, v in vars(user).items() if v is old and (k == key or callable(old))]:
                    monkeypatch.setattr(user, own, new)
    try:
        with pytest.raises(AssertionError):
            mutant.killer()
    finally:
        forget()


def forget() -> None:
    """What was computed with other functions."""
    candidate_gradients.cache_clear()
    sample.cache_clear()


def is_own(key: str, value: object, original: ModuleType) -> bool:
    """Whether a name of the mutant is one that its file defines, rather than one that it imports."""
    if key.startswith("__") or not hasattr(original, key):
        return False
    if isinstance(value, int | float | tuple | dict):
        return value != getattr(original, key)
    return getattr(value, "__module__", None) == "mutant"
