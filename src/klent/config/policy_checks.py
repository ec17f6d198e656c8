"""What a kind of policy needs of the other sections, and keys of theirs that it does not read."""

from collections.abc import Iterator

from klent.config import binding
from klent.config.checks import streams
from klent.config.layers import KeyPath
from klent.config.policy import DenoiserSettings
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.config.task import NoiseSettings
from klent.streams.registry import REGISTRY
from klent.streams.sets import OF_IMAGES

_BEGINS = {
    "text": "prompts",
    "noise": "noise, e.g. task: {noise: 64}",
    "segments": "task: {segments: FOLDER}",
}
_OF_LANGUAGE: tuple[KeyPath, ...] = (
    *(
        (key,)
        for key in ("device", "precision", "attention", "trust_remote_code", "lora", "critic", "bellman")
    ),
    *((key,) for key in ("thermostat", "adaptive_kl")),
    *(
        ("update", key)
        for key in ("packing", "gradient_checkpointing", "keep_logits", "released_code", "distance")
    ),
    *(("eval", key) for key in ("play", "temperatures", "same", "logits", "early_stop")),
)
"""Keys about tokens, or about models of text."""
_OF_DEVICES = ("device", "precision")


def policy_problems(recipe: Recipe) -> Iterator[Problem]:
    """A task that it cannot begin from, an engine that is not its own, keys and streams that it has not."""
    policy, begins = recipe.policy, recipe.task.begins
    if begins != policy.task:
        reason = f"a {policy.kind} begins from {_BEGINS[policy.task]}"
        yield Problem(("task",), f"gives {begins}, and {reason}; choose another task or policy.kind")
    yield from _engine_problems(recipe)
    if not policy.language:
        yield from _unread_problems(recipe)
        yield from _stream_problems(recipe)
    yield from _label_problems(recipe)
    yield from _image_problems(recipe)
    if isinstance(policy, DenoiserSettings):
        yield from _sampler_problems(policy)


def _image_problems(recipe: Recipe) -> Iterator[Problem]:
    """Losses of noised images, and the images of data that one of them reads."""
    reads = streams(recipe)
    of_images = sorted(OF_IMAGES & reads)
    if of_images and recipe.policy.language:
        reason = f"{recipe.policy.kind} makes no images, and the loss reads {of_images[0]}"
        yield Problem(("policy", "kind"), f"{reason}; set policy: {{kind: denoiser}}, or choose another loss")
    if not isinstance(recipe.task, NoiseSettings):
        return
    if "denoising_data" in reads and recipe.task.images is None:
        reason = "is missing: the loss reads denoising_data, of images of data"
        yield Problem(("task", "images"), f"{reason}; set it to a .npy file with an image per row")
    if recipe.task.images is not None and "denoising_data" not in reads:
        fix = "remove it, or add denoising: {coef: 0.1}"
        yield Problem(("task", "images"), f"is not used: no term of the loss reads denoising_data; {fix}")


def _sampler_problems(policy: DenoiserSettings) -> Iterator[Problem]:
    """Keys of one sampler beside another."""
    plain = DenoiserSettings(kind="denoiser")
    for key, sampler in (("eta", "ddim"), ("noise_level", "flow")):
        if policy.sampler != sampler and getattr(policy, key) != getattr(plain, key):
            yield Problem(
                ("policy", key), f"is not used by sampler {policy.sampler}, only by {sampler}; remove it"
            )
    if policy.penalty == "flow_grpo" and policy.sampler != "flow":
        reason = f"is in steps of a flow's time, and {policy.sampler} has none"
        yield Problem(("policy", "penalty"), f"flow_grpo {reason}; set sampler: flow")


def _engine_problems(recipe: Recipe) -> Iterator[Problem]:
    """Vectors are drawn by the policy itself, texts by an engine."""
    policy, engine = recipe.policy, recipe.rollout.engine
    if policy.engine and engine != policy.engine:
        reason = f"{engine} is not the engine of a {policy.kind}"
        yield Problem(("rollout", "engine"), f"{reason}; set rollout: {{engine: {policy.engine}}}")
    if not policy.engine and engine == "policy":
        reason = f"policy draws actions that are vectors, and a {policy.kind} reads texts"
        yield Problem(("rollout", "engine"), f"{reason}; set transformers or dataset")


def _unread_problems(recipe: Recipe) -> Iterator[Problem]:
    """Keys that are about tokens, set to something."""
    for path in _OF_LANGUAGE:
        section: object = recipe
        for key in path[:-1]:
            section = getattr(section, str(key))
        if section is None:
            continue
        field = type(section).model_fields[str(path[-1])]  # type: ignore[attr-defined]
        if getattr(section, str(path[-1])) != field.get_default(call_default_factory=True):
            reason = "is trained on the CPU in float32" if path[0] in _OF_DEVICES else "has no tokens"
            yield Problem(path, f"is not used: a {recipe.policy.kind} {reason}; remove it")
    if recipe.update.kl.skew:
        yield Problem(
            ("update", "kl", "skew"), "mixes distributions, and a mixture of Gaussians is none; remove it"
        )


def _label_problems(recipe: Recipe) -> Iterator[Problem]:
    """What a label of the behaviour policy needs, and what a robot's recipe says of a reference in vain."""
    labelled = recipe.policy.labelled
    for name, settings in recipe.loss.items():
        if settings.get("label") == "expected" and not labelled:
            reason = f"expected needs rollouts of the behaviour policy, and a {recipe.policy.kind} has none"
            yield Problem(
                ("loss", name, "label"), f"{reason}; set realised, with update.kl: {{divergence: forward}}"
            )
    judged_by = recipe.reward is not None or (recipe.eval is not None and recipe.eval.reward is not None)
    if labelled and judged_by:
        path = ("reward",) if recipe.reward is not None else ("eval", "reward")
        yield Problem(
            path, "is not used: task.by says what segments are worth, the simulator judges; remove it"
        )
    if labelled and recipe.update.kl != type(recipe.update.kl)():
        reason = (
            "is not used: kl is the divergence from the behaviour policy, and the loss's label says which"
        )
        yield Problem(("update", "kl"), f"{reason}; remove it")
    if labelled and recipe.reference is not None and "logp_ref" not in streams(recipe):
        yield Problem(("reference",), "is not used: no term reads logp_ref; remove it, or add e.g. dpo")


def _stream_problems(recipe: Recipe) -> Iterator[Problem]:
    """Terms that read numbers of a vocabulary, or of models beside the policy."""
    nested = [*(recipe.select or {}).values(), *(recipe.weigh or {}).values()]
    terms = [*recipe.loss, *(recipe.token_reward or {}), *(name for choice in nested for name in choice)]
    measured = {name for name, stream in REGISTRY.items() if stream.when.startswith("in every forward pass")}
    for name in terms:
        function = binding.resolve(name)
        reads = binding.streams_of(function) - binding.optional_of(function)
        if lacking := sorted(reads & (measured - recipe.policy.gives)):
            reason = f"reads {lacking[0]}, which a {recipe.policy.kind} does not give"
            yield Problem(("loss", name) if name in recipe.loss else (), f"{reason}; remove {name}")
    if not streams(recipe) & recipe.policy.gives:
        yield Problem(("loss",), f"reads none of {', '.join(sorted(recipe.policy.gives))}; add a term")
