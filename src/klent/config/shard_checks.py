"""What does not go with weights that are sharded over the ranks."""

from collections.abc import Iterator

from klent.config.problems import Problem
from klent.config.recipe import Recipe


def shard_problems(recipe: Recipe) -> Iterator[Problem]:
    """What reads or replaces weights of which a rank holds a part, or was not held against one process."""
    if recipe.distributed != "fsdp":
        return
    rollout, update = recipe.rollout, recipe.update
    recorded = rollout.engine == "transformers" and rollout.decoding == "graph"
    others = {
        f"policy.kind={recipe.policy.kind}": (
            recipe.policy.kind != "causal_lm",
            "is small, and whole on each rank",
        ),
        "lora": (recipe.lora is not None, "trains few weights, of which each rank holds all"),
        "critic": (recipe.critic is not None, "has weights that are not sharded yet"),
        "bellman": (recipe.bellman is not None, "keeps a second set of the weights, whole"),
        "update.distance": (update.distance is not None, "keeps the weights of the start of the step, whole"),
        "rollout.mixture": (rollout.mixture is not None, "samples from two models at a time"),
        "rollout.engine=vllm": (rollout.engine == "vllm", "has a copy of all weights beside the shards"),
        "rollout.staleness": (
            rollout.staleness > 0,
            "samples in a thread, and ranks gather weights together",
        ),
        "rollout.decoding=graph": (recorded, "is recorded with weights in one place, which gathering moves"),
    }
    for name, reason in ((name, reason) for name, (is_set, reason) in others.items() if is_set):
        fix = "Set distributed: ddp, where each rank has all weights, or remove it"
        yield Problem(("distributed",), f"fsdp does not go with {name}: it {reason}. {fix}")
