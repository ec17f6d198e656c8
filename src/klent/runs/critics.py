"""The critic that a recipe describes."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from klent.config import Critic as Settings
from klent.config import Recipe
from klent.errors import ModelError, RunError
from klent.models.load import LoadedModel, load_policy
from klent.models.score_head import OFFSET
from klent.policies.causal_lm.critic import Critic
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.runs.device import computes_in

SCORE = "score.weight"
"""The head of a sequence classifier of transformers, so of a reward model."""


def build_critic(
    settings: Settings, recipe: Recipe, policy: CausalPolicy, loaded: LoadedModel, note: Callable[[str], None]
) -> Critic:
    """The critic beside a policy; its trunk, where it has one of its own, starts as the policy did.

    From the folder of a reward model it takes layers and head: before it has learnt anything, it expects what the
    reward model would give for the text so far.

    Args:
        settings: the recipe's section.
        recipe: what the policy is.
        policy: beside which it stands.
        loaded: the policy's model, with its tokenizer.
        note: told in words where the head starts.

    Raises:
        RunError: the policy's hidden states are not at hand for a shared trunk.
        ModelError: the folder is of another tokenizer, or its head gives no single finite number.
    """
    model = policy.model
    if settings.trunk == "shared":
        if not policy.fused:
            raise RunError(
                "critic.trunk=shared reads the hidden states before the head, and they are not available for this "
                "model, whose logits are not one matrix product. Use critic.trunk=own."
            )
        return Critic(int(model.config.get_text_config().hidden_size), device=model.device)
    name = settings.model or recipe.model
    trunk = load_policy(
        name,
        dtype=computes_in(recipe.precision, model.device),
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        gradient_checkpointing=recipe.update.gradient_checkpointing,
        device=model.device,
        body=True,
    )
    _refuse_other_tokens(name, trunk, loaded)
    CausalPolicy(
        trunk.model, temperature=1.0
    )  # refuses a model whose numbers depend on the rows beside a row
    critic = Critic(int(trunk.model.config.get_text_config().hidden_size), trunk.model, device=model.device)
    folder = Path(trunk.source)
    if (weight := read_score(folder, critic.head.in_features)) is not None:
        critic.start_from(weight, read_offset(folder))
        note(f"the critic starts from the reward model {name}: its layers and its head")
    return critic


def critic_shares(critic: Critic | None, *, longest: int) -> bool:
    """Whether a critic's own layers, too, take a group behind one prompt; asked as a policy is asked.

    Whether they may be computed in blocks is noted in ``critic.takes_blocks``.

    Args:
        critic: None, or one without layers of its own, has nothing against it.
        longest: see :func:`takes_shared_prompt`.
    """
    if critic is None or critic.trunk is None:
        return True
    asked = CausalPolicy(critic.trunk, temperature=1.0)
    takes = takes_shared_prompt(asked, longest=longest)
    critic.takes_blocks = asked.takes_blocks
    return takes


def _refuse_other_tokens(name: str, trunk: LoadedModel, loaded: LoadedModel) -> None:
    """Every token that the policy writes has to mean the same to the critic."""
    ours, theirs = (dict(model.tokenizer.get_vocab()) for model in (loaded, trunk))
    if ours != theirs:
        token = min(piece for piece, _ in ours.items() ^ theirs.items())
        raise ModelError(
            f"critic.model {name} has another tokenizer than the policy: {token!r} is token {theirs.get(token)} "
            f"there, {ours.get(token)} here. A critic reads the policy's tokens; use a model with the same tokenizer"
        )
    if trunk.rows < loaded.rows:
        raise ModelError(
            f"critic.model {name} has embeddings for {trunk.rows} tokens, and the policy can write {loaded.rows}. "
            "Use a model with the same vocabulary"
        )


def read_score(folder: Path, width: int) -> Tensor | None:
    """The head of a reward model's folder, ``[1, H]`` float32; None where the folder has none.

    Raises:
        ModelError: more than one label, another width than the layers have, or a number that is not finite.
    """
    weight: Tensor | None = None
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if SCORE in tensors.keys():  # noqa: SIM118 - it is no mapping
                weight = tensors.get_tensor(SCORE).float()
    if weight is None:
        return None
    labels, states = weight.shape
    if labels != 1:
        raise ModelError(
            f"{folder} scores {labels} labels, and a critic expects one number. Use a reward model with one label "
            "(num_labels=1)"
        )
    if states != width:
        raise ModelError(
            f"{folder} has a {SCORE} for hidden states of {states} numbers, and its layers give {width}. "
            "Copy it again"
        )
    if not torch.isfinite(weight).all():
        raise ModelError(
            f"{folder} has a {SCORE} with numbers that are not finite. Train the reward model again"
        )
    return weight


def read_offset(folder: Path) -> float:
    """What klent adds to every score of a reward model's folder; 0 where it was not centred."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return float(config.get(OFFSET) or 0.0)
