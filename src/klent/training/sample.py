"""Completions of one prompt, for a look at what a model says."""

import torch

from klent.models import load_policy
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.tasks import Prompt


def sample(
    model: str,
    prompt: str,
    *,
    count: int = 1,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    system: str | None = None,
) -> list[str]:
    """Sample completions; a model with a chat template gets the prompt as a user's message.

    Args:
        model: alias, folder or hub id.
        prompt: what to complete.
        count: how many completions.
        max_tokens: longest completion, tokens.
        temperature, top_p, top_k: see :func:`klent.rollout.sampling.sample_tokens`.
        seed: same seed, same text.
        system: system prompt; needs a chat template.
    """
    loaded = load_policy(model)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    chat = system is not None or bool(loaded.tokenizer.chat_template)
    options = SamplingOptions(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k)
    engine = TransformersEngine(loaded, options)
    asked = Prompt("prompt", messages if chat else prompt)
    return [rollout.text for rollout in engine.generate([asked], group_size=count, seed=seed)]
