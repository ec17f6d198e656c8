"""An engine that samples with a copy of the policy's weights, so that training may go on meanwhile."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from klent.errors import ModelError
from klent.models.device import type_name
from klent.models.load import LoadedModel
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import logp_alone
from klent.policies.policy import Policy
from klent.rollout.certificate import Certifier
from klent.rollout.engine import SyncCertificate
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine


class CopiedEngine(TransformersEngine):
    """As :class:`TransformersEngine`, with weights of its own that :meth:`sync` renews and certifies.

    Args:
        loaded: the model that is trained, which is copied.
        options: how to sample.
        rows, note: as of :class:`TransformersEngine`. Decoding is eager: while a step is recorded as a graph, nothing
            else may run on the device, and training does.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        options: SamplingOptions,
        *,
        rows: int | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        own = copy.deepcopy(
            loaded.model
        ).eval()  # trainable, as frozen parameters take other kernels, and round
        super().__init__(replace(loaded, model=own), options, rows=rows, decoding="eager", note=note)
        self.trained = loaded.model
        self.certifier = Certifier(loaded.tokenizer, dtype=type_name(own.dtype))

    def sync(self, policy: Policy) -> SyncCertificate:
        """Copy every weight, an adapter's too, and certify that they are sampled from.

        Raises:
            SyncError: they are not.
        """
        if not isinstance(policy, CausalPolicy):
            raise ModelError(
                "rollout.staleness needs a second copy of a language model, and this policy is none; set "
                "rollout.staleness: 0"
            )
        self.loaded.model.load_state_dict(self.trained.state_dict())
        return self.certifier.certify(policy, self)

    @torch.no_grad()
    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
        """Log-probabilities of given tokens; see :class:`klent.rollout.certificate.OwnWeights`."""
        return [logp_alone(self.loaded.model, prompt, tokens) for prompt, tokens in rows]
