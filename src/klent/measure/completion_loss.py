"""The loss on completions that the policy did not write: of held-out data, exact, without sampling anything."""

import math
from collections.abc import Callable, Sequence

from klent.kit.statistics import ratio_of_means
from klent.policies.policy import Policy
from klent.streams.batch import Batch, Stats, make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import text_of

TEXTS = 4  # completions whose every token is written down
TOKENS = 320  # of each
WORST = 12  # tokens with the largest loss
CONTEXT = 8  # tokens written down before each of them

Measure = Callable[[Batch, range, Policy | None], Stats]
"""As :meth:`klent.training.update.Updater.measure`."""

Decode = Callable[[list[int]], str]


def completion_loss(episodes: Sequence[Episode], measure: Measure, decode: Decode) -> dict[str, object]:
    r"""Nats per token of held-out completions, as keys of ``eval.jsonl``.

    .. math:: L = -\frac{\sum_i \sum_t \log\pi(y_{i,t} \mid x_i, y_{i,<t})}{\sum_i |y_i|}

    over the tokens that would be trained: a mean over tokens, not over completions. Nothing of it is random. The
    interval is one over completions, which are the units that were drawn.

    Args:
        episodes: prompts with their completions, at least one.
        measure: gives the policy's log-probabilities as it stands.
        decode: token ids -> text.
    """
    batch = make_batch(episodes, None, group_size=1)
    losses = -measure(batch, range(len(batch)), None).logp.double()
    sums = losses.where(batch.mask, 0.0).sum(dim=1).tolist()
    counts = [float(count) for count in batch.mask.sum(dim=1).tolist()]
    loss = sum(sums) / sum(counts)
    row: dict[str, object] = {"loss": loss}
    if len(sums) > 1 and min(loss, sum(counts)) > 0:
        _, row["loss_low"], row["loss_high"] = ratio_of_means(sums, counts)
    by_token = [
        [value if acted else None for value, acted in zip(line, episode.acted.tolist(), strict=False)]
        for line, episode in zip(losses.tolist(), episodes, strict=True)
    ]
    return row | {
        "perplexity": math.exp(min(loss, 700.0)),
        "loss_completions": len(episodes),
        "loss_tokens": int(sum(counts)),
        "loss_texts": [
            _text(episode, values, decode)
            for episode, values in zip(episodes[:TEXTS], by_token, strict=False)
        ],
        "loss_worst": _worst(episodes, by_token, decode),
    }


def _text(episode: Episode, losses: Sequence[float | None], decode: Decode) -> dict[str, object]:
    """A completion token by token; None where the policy did not act."""
    prompt = episode.prompt.prompt
    if not isinstance(prompt, str):
        prompt = "\n".join(f"{message['role']}: {text_of(message.get('content'))}" for message in prompt)
    return {
        "prompt_id": episode.prompt.id,
        "prompt": prompt,
        "tokens": [decode([token]) for token in episode.tokens[:TOKENS].tolist()],
        "loss": [None if value is None else round(value, 4) for value in losses[:TOKENS]],
        "hidden": max(0, len(episode.tokens) - TOKENS),
    }


def _worst(
    episodes: Sequence[Episode], losses: Sequence[Sequence[float | None]], decode: Decode
) -> list[dict[str, object]]:
    """The tokens with the largest losses, each with what stands before it."""
    found = sorted(
        ((value, e, t) for e, line in enumerate(losses) for t, value in enumerate(line) if value is not None),
        key=lambda one: (-one[0], *one[1:]),
    )
    return [
        {
            "prompt_id": episodes[e].prompt.id,
            "position": t,
            "before": decode(episodes[e].tokens[max(0, t - CONTEXT) : t].tolist()),
            "token": decode([int(episodes[e].tokens[t])]),
            "loss": round(value, 4),
        }
        for value, e, t in found[:WORST]
    ]
