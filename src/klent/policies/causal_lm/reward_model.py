"""A reward model as a policy: one number per text, linear in the last hidden state at the text's end.

It is no distribution over actions: it has no log-probabilities and no entropy, and whoever asks it for a ``score``
reads nothing else of it.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from klent.errors import ModelError
from klent.head import TokenStats
from klent.models.exact import close
from klent.models.score_head import OFFSET, offset_of, score_alone, score_head
from klent.policies.causal_lm.forward import predicting_states
from klent.policies.causal_lm.model import CausalModel
from klent.policies.causal_lm.packing import (
    Completion,
    Group,
    Pack,
    Packing,
    completions,
    make_groups,
    make_microbatches,
    pack,
    row_length,
)
from klent.policies.causal_lm.probe import evaluating
from klent.streams.batch import Batch, Stats


class ScoringModel(CausalModel, Protocol):
    """A transformers model with a head ``score`` in place of one over the vocabulary."""

    score: nn.Linear


class RewardModel(nn.Module):
    """What a text is worth; a :class:`klent.policies.policy.Policy`.

        r(x, y) = w·h(x, y) + offset

    ``h`` is the last layer's hidden state at the last token of prompt and completion that is not padding, the token
    that ends the text included: where transformers' sequence classification reads it.

    Args:
        model: of :func:`klent.models.load.load_policy` with ``scores``.
        packing: how rows are laid out.
    """

    def __init__(self, model: ScoringModel, *, packing: Packing | None = None) -> None:
        super().__init__()
        self.model = model
        self.packing = packing or Packing()
        self.offset = offset_of(cast("nn.Module", model))  # type: ignore[arg-type]
        self.padding: int | None = getattr(model.config.get_text_config(), "pad_token_id", None)
        self.takes_blocks = False
        self.fused = True  # what probes ask of a head: this one is a product of hidden states
        self.temperature = 1.0
        score_head(model, "the model")  # type: ignore[arg-type]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that receive gradients, by the model's own names."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def microbatches(self, batch: Batch, rows: Sequence[int]) -> list[list[int]]:
        """Rows of similar length together, within the packing's budget; pairs are never cut."""
        cut = make_microbatches(self._groups(batch, rows), budget=self.packing.budget)
        return [sorted(item.index for group in groups for item in group) for groups in cut]

    def evaluate(self, batch: Batch, rows: Sequence[int], *, also: Collection[str] = ()) -> Stats:
        """``score`` of each text, ``[rows]``; of ``logp`` and ``entropy`` there is nothing, and they are 0."""
        groups = sorted(self._groups(batch, rows), key=row_length, reverse=True)
        packed = pack(groups, shared=self.packing.shared)
        values = self(packed).logp
        place = torch.empty(len(batch), dtype=torch.long)
        place[list(rows)] = torch.arange(len(rows))
        where = place[packed.row].to(values.device)
        score = torch.zeros(len(rows), device=values.device).index_put((where,), values)
        nothing = torch.zeros(len(rows), batch.mask.shape[1], device=values.device)
        return Stats(nothing, nothing, score=score, tokens=packed.tokens, targets=len(packed.target))

    def forward(self, rows: Pack) -> TokenStats:
        """The score at each place of packed rows that is asked about, ``[N]`` float32; under the name of probes."""
        states = predicting_states(self.model, rows, blocks=self.takes_blocks)
        value: Tensor = self.model.score(states)
        return TokenStats(value.squeeze(-1).float() + self.offset, None)

    def _groups(self, batch: Batch, rows: Sequence[int]) -> list[Group]:
        ends = [at_end(item, self.padding) for item in completions(batch, rows)]
        return make_groups(ends, shared=self.packing.shared, budget=self.packing.budget)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """The score of every text of a batch as the model stands, ``[B]``, without dropout."""
        was_training = self.model.training
        self.model.eval()
        score = torch.zeros(len(batch))
        for part in self.microbatches(batch, range(len(batch))):
            found = self.evaluate(batch, part).score
            assert found is not None
            score[part] = found.cpu()
        self.model.train(was_training)
        return score

    def centre(self, mean: float) -> None:
        """Move every score so that what had this mean score has 0; the model's configuration keeps it."""
        self.offset -= mean
        setattr(self.model.config, OFFSET, self.offset)


def at_end(item: Completion, padding: int | None) -> Completion:
    """A completion whose only action stands behind its last token: what is read is the state at that token.

    The action's token is none of the text. It is the last of its row, which is predicted and never read.

    Args:
        item: a completion.
        padding: the token that is not read at, wherever it stands last; None = there is none.
    """
    seen = (item.tokens != padding).nonzero()[:, 0] if padding is not None else torch.arange(len(item.tokens))
    kept = int(seen[-1]) + 1 if len(seen) else 0
    tokens = torch.cat([item.tokens[:kept], item.tokens.new_zeros(1)])
    acted = torch.zeros(len(tokens), dtype=torch.bool)
    acted[-1] = True
    return replace(item, tokens=tokens, acted=acted)


def require_scores(policy: RewardModel) -> None:
    """Refuse a model whose scores of rows beside one another are not those of transformers for each row alone.

    Raises:
        ModelError: they differ.
    """
    size = policy.model.config.get_text_config().vocab_size
    rows = [
        [
            token + (token == policy.padding)
            for token in ((11 * i + 7 * k + 1) % (size - 1) for i in range(length))
        ]
        for k, length in enumerate((9, 4, 6))
    ]
    items = [
        at_end(Completion(k, row[:2], torch.tensor(row[2:]), k), policy.padding) for k, row in enumerate(rows)
    ]
    with evaluating(policy.model):
        alone = torch.cat([score_alone(policy.model, row) for row in rows])  # type: ignore[arg-type]
        beside = policy(pack([[item] for item in items], shared=False)).logp - policy.offset
    if not close(alone.cpu(), beside.cpu(), policy.model.dtype):
        raise ModelError(
            "the model cannot be used as a reward model: its score of a text changes with the lengths of the other "
            "texts in the batch, or is not linear in the last hidden state. Use another model"
        )
