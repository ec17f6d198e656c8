"""What can be wrong with a recipe's keys about the policy that sampled: its distance, and its mismatch."""

from collections.abc import Iterator

from klent.config.binding import optional_of, resolve, streams_of
from klent.config.checks import streams
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.objectives.kinds import weighs_itself, whole_sequences

_COLDEST = 0.01  # vllm's, of the temperatures above 0


def sampler_problems(recipe: Recipe) -> Iterator[Problem]:
    """A distance that nothing reads or gives, and weights that would count twice or not at all."""
    yield from _distance_problems(recipe)
    yield from _mismatch_problems(recipe)
    if recipe.rollout.staleness:
        yield from _staleness_problems(recipe)
    yield from _engine_problems(recipe)


def _engine_problems(recipe: Recipe) -> Iterator[Problem]:
    """What an engine of another library cannot do as the trainer does it."""
    rollout, path = recipe.rollout, ("rollout",)
    if rollout.engine != "vllm":
        return
    cut = "vllm does not report the entropy of the truncated distribution, and the trainer's is that of the full one"
    if rollout.mixture is not None:
        reason = "needs the logits of both models at every token, and vllm gives none"
        yield Problem((*path, "mixture"), f"{reason}; use rollout.engine=transformers")
    if rollout.top_p < 1.0:
        yield Problem((*path, "top_p"), f"{cut}; set 1, or rollout.engine=transformers")
    if rollout.top_k:
        yield Problem((*path, "top_k"), f"{cut}; set 0, or rollout.engine=transformers")
    if rollout.temperature < _COLDEST:
        reason = f"vllm takes {_COLDEST} for any temperature between 0 and that"
        yield Problem((*path, "temperature"), f"{reason}; set {_COLDEST} or more")
    thermostat = recipe.thermostat
    if thermostat is not None and thermostat.steer == "temperature" and thermostat.low < _COLDEST:
        yield Problem(("thermostat", "low"), f"is below what vllm samples at; set {_COLDEST} or more")
    if rollout.server is None and rollout.server_folder is not None:
        yield Problem(
            (*path, "server_folder"), "is not used without rollout.server; remove it, or name the server"
        )
    if rollout.server is not None and "cache_gb" in rollout.model_fields_set:
        reason = "is not used with rollout.server, which has its own --gpu-memory-utilization"
        yield Problem((*path, "cache_gb"), f"{reason}; remove it")
    if recipe.lora is not None and rollout.dtype == "bfloat16":
        reason = "bfloat16 has 8 bits: an adapter that is merged into it for vllm is rounded away"
        yield Problem((*path, "dtype"), f"{reason}; set float32, or train without lora")
    if recipe.trust_remote_code:
        reason = "would run the folder's code in vllm too, which has models of its own"
        yield Problem(("trust_remote_code",), f"{reason}; use rollout.engine=transformers")


def _distance_problems(recipe: Recipe) -> Iterator[Problem]:
    path, terms = ("update", "distance"), ", ".join(recipe.loss) or "none"
    if recipe.update.distance is None:
        for name in recipe.loss:
            function = resolve(name)
            if "distance" in streams_of(function) - optional_of(function):
                yield Problem(
                    ("loss", name), "reads `distance`, which nothing gives; set update.distance: tv"
                )
    elif "distance" not in streams(recipe):
        yield Problem(
            path, f"is not used: no term of the loss ({terms}) reads `distance`; remove it, or use dppo"
        )
    elif recipe.rollout.mixture is not None:
        reason = (
            "is measured from the policy as it was, and rollout.mixture samples from another distribution"
        )
        yield Problem(path, f"{reason}; remove one of the two")


def _mismatch_problems(recipe: Recipe) -> Iterator[Problem]:
    mismatch = recipe.rollout.mismatch
    if mismatch is None:
        return
    path = ("rollout", "mismatch")
    if recipe.rollout.mixture is not None:
        reason = "weighs by policy/sampler, and so does rollout.mixture.weights"
        yield Problem(path, f"{reason}; remove it")
    if recipe.update.released_code:
        yield Problem(
            path, "is not used with update.released_code, whose positions were not sampled; remove it"
        )
    functions = [resolve(name) for name in recipe.loss]
    whole = all(whole_sequences(function) for function in functions)
    own = all(whole_sequences(function) or weighs_itself(function) for function in functions)
    if recipe.loss and (whole or (own and mismatch.bounds.outside == "truncate")):
        reason = f"is not used: the loss ({', '.join(recipe.loss)}) has the ratio to the sampler in it"
        fix = "remove it" if whole else "remove it, or choose a mode that masks"
        yield Problem(path, f"{reason}; {fix}")


def _staleness_problems(recipe: Recipe) -> Iterator[Problem]:
    """What takes the sampler for the policy as it stands, or is not made for two threads."""
    path, rollout = ("rollout", "staleness"), recipe.rollout
    steers = recipe.thermostat is not None and recipe.thermostat.steer == "temperature"
    recorded = rollout.engine == "transformers" and rollout.decoding == "graph"
    others = {
        "rollout.mixture": (rollout.mixture is not None, "has a target, which is not copied"),
        "rollout.engine=vllm": (rollout.engine == "vllm", "is scored by the trainer, which is busy training"),
        "rollout.decoding=graph": (recorded, "is recorded while nothing else runs"),
        "task.env": (recipe.task.pays, "is played by one thread at a time"),
        "update.distance": (
            recipe.update.distance is not None,
            "is from the start of the step, not the sampler",
        ),
        "update.released_code": (recipe.update.released_code, "trains positions that were not sampled"),
        "thermostat.steer=temperature": (steers, "would change it while completions are under way"),
    }
    for name, reason in ((name, reason) for name, (is_set, reason) in others.items() if is_set):
        yield Problem(
            path, f"{rollout.staleness} does not go with {name}: it {reason}. Set one of the two back"
        )
    if rollout.mismatch is not None:
        return
    for name in recipe.loss:
        reads = streams_of(resolve(name))
        if "advantage" in reads and not reads & {"logp_old", "logp_gen"}:
            reason = f"takes completions for the policy's own, and with rollout.staleness={rollout.staleness}"
            fix = "Use a loss that clips the ratio (ppo_clip, cispo), or set rollout.mismatch"
            yield Problem(("loss", name), f"{reason} they are older. {fix}")
