"""The critic that a recipe describes."""

from klent.config import Critic as Settings
from klent.config import Recipe
from klent.errors import RunError
from klent.models.load import load_policy
from klent.policies.causal_lm.critic import Critic
from klent.policies.causal_lm.policy import CausalPolicy


def build_critic(settings: Settings, recipe: Recipe, policy: CausalPolicy) -> Critic:
    """The critic beside a policy; its trunk, where it has one of its own, starts as the policy did.

    Raises:
        RunError: the policy's hidden states are not at hand for a shared trunk.
    """
    model = policy.model
    width = int(model.config.get_text_config().hidden_size)
    if settings.trunk == "shared":
        if not policy.fused:
            raise RunError(
                "critic.trunk=shared reads the hidden states in front of the head, and this model does more to its "
                "logits than a head: its hidden states are not kept. Use critic.trunk=own."
            )
        return Critic(width, dtype=model.dtype, device=model.device)
    trunk = load_policy(
        settings.model or recipe.model,
        dtype=recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        gradient_checkpointing=recipe.update.gradient_checkpointing,
        device=model.device,
    ).model
    return Critic(width, trunk, dtype=model.dtype, device=model.device)
