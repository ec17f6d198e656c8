"""How a recipe's passes are laid out in memory: what ``update`` asks for and the model allows."""

from collections.abc import Callable

import torch

from klent.config.training import Update
from klent.errors import RunError
from klent.policies.causal_lm.model import attention_window
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import takes_joined_rows, takes_shared_prompt
from klent.rollout.memory import whole_bytes
from klent.runs.critics import critic_shares
from klent.runs.engines import RolloutSection


def choose_packing(
    update: Update, rollout: RolloutSection, model: str, policy: CausalPolicy, note: Callable[[str], None]
) -> Packing:
    """The layout of a policy's rows.

    Args:
        update: what asks.
        rollout: how long completions may be.
        model: its name.
        policy: which is asked what it allows.
        note: told where it refuses.

    Raises:
        RunError: the recipe insists on a layout that the model refuses.
    """
    budget = update.tokens_per_microbatch
    if update.packing == "off":
        return Packing(False, budget)
    # The window check needs a length; the context is the safe answer where prompts are not known yet.
    window = getattr(policy.model.config.get_text_config(), "sliding_window", None)
    longest = rollout.max_tokens if window is None else rollout.max_tokens + window
    takes = takes_shared_prompt(policy, longest=longest)
    if not (takes and critic_shares(policy.critic, longest=longest)):
        which, whose = ("critic.model", "critic's") if takes else (model, "model's")
        if update.packing == "on":
            raise RunError(
                f"update.packing=on, but {which} does not give the same log-probabilities when a group shares its "
                "prompt in one row: its attention cannot use such a mask. Use update.packing=auto or off."
            )
        note(f"the {whose} attention cannot share a prompt: each completion gets its own row (exact, slower)")
        return Packing(False, budget)
    if update.packing != "full":
        return Packing(True, budget)
    if policy.critic is not None and policy.critic.trunk is not None:
        note(
            "update.packing=full works like `on`, because the critic has layers of its own: each row has one prompt"
        )
        return Packing(True, budget)
    if not takes_joined_rows(policy, longest=longest):
        note("the model cannot keep prompts in one row apart: each prompt gets its own row (exact, padded)")
        return Packing(True, budget)
    return Packing(True, budget, joined=min(budget, _reach(policy)))


def kept_logits(update: Update, device: torch.device) -> int:
    """Bytes of logits that a forward pass may leave to its backward pass."""
    if update.keep_logits != "auto":
        return update.keep_logits * 1_000_000
    return 0 if update.gradient_checkpointing else whole_bytes(device) // 64


def _reach(policy: CausalPolicy) -> int:
    """Tokens that a row may have whatever the model does with its length: its context, and its window."""
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    return min(limit for limit in (context, attention_window(policy.model), 1 << 30) if limit)
