"""An engine that holds a copy of the model, as a server or vLLM does, and that can be broken in every known way."""

from dataclasses import replace

import torch

from klent.models.adapter import merged_weights
from klent.models.load import LoadedModel
from klent.policies.causal_lm.probe import logp_alone
from klent.rollout.certificate import Certifier
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine

FAULTS = {
    "old weights": "old weights",
    "adapter missing": "adapter missing",
    "wrong dtype": "wrong dtype",
    "wrong temperature": "wrong temperature",
    "raw logp": "wrong temperature",  # reports the numbers of temperature 1
    "top_p": "wrong truncation",
    "top_k": "wrong truncation",
    "late": "wrong indexing",
    "early": "wrong indexing",
    "wrong tokenizer": "wrong tokenizer",
    "other weights": "other weights",
    "not a number": "other weights",
}
"""What :class:`OwnEngine` can do wrong -> the cause that names it."""


class OwnEngine(TransformersEngine):
    """Samples with a copy of the policy, which :meth:`sync` replaces.

    Args:
        copy: its own model.
        options: what the run takes it to sample.
        fault: of :data:`FAULTS`; empty = none. May be set between two calls.
        tokenizer: of the engine, where it is not the trainer's.
    """

    def __init__(self, copy: LoadedModel, options: SamplingOptions, *, fault: str = "", tokenizer=None):
        super().__init__(copy, options)
        self.fault = fault
        self.certifier = Certifier(copy.tokenizer, of_engine=lambda: tokenizer or copy.tokenizer)

    def sync(self, policy):
        self.load(policy.model)
        return self.certifier.certify(policy, self)

    def load(self, model):
        """The weights arrive, merged under the names of the base model, or do not."""
        mine = self.loaded.model
        if self.fault == "old weights":
            return
        weights = {name.removeprefix("base_model.model."): w for name, w in merged_weights(model).items()}
        if self.fault == "adapter missing":
            state = model.state_dict().items()
            bare = {n.replace(".base_layer.", ".").removeprefix("base_model.model."): w for n, w in state}
            weights = {name: weight for name, weight in bare.items() if ".lora_" not in name}
        if self.fault == "wrong dtype":
            mine.to(torch.bfloat16)
        mine.load_state_dict(weights)
        if self.fault == "other weights":
            with torch.no_grad():
                for parameter in mine.parameters():
                    parameter.mul_(1.1)

    @torch.no_grad()
    def score(self, rows):
        scored = []
        for prompt, tokens in rows:
            scored.append(self._misplaced(logp_alone(self.loaded.model, prompt, tokens)))
        return scored

    def generate(self, prompts, *, group_size, seed):
        meant = self.options
        changed = {
            "wrong temperature": {"temperature": 0.7 * meant.temperature},
            "top_p": {"top_p": 0.8},
            "top_k": {"top_k": 5},
        }
        self.options = replace(meant, **changed.get(self.fault, {}))
        try:
            episodes = super().generate(prompts, group_size=group_size, seed=seed)
        finally:
            self.options = meant
        if self.fault == "raw logp":
            rows = [(episode.prompt_ids, episode.tokens.tolist()) for episode in episodes]
            return [replace(e, logp=logp) for e, logp in zip(episodes, self.score(rows), strict=True)]
        return [replace(episode, logp=self._misplaced(episode.logp)) for episode in episodes]

    def _misplaced(self, logp):
        changed = {"late": logp.roll(1), "early": logp.roll(-1), "not a number": logp * torch.nan}
        return changed.get(self.fault, logp)
