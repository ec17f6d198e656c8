"""How much of its pretraining a model has forgotten: nats per character on new texts of the same kind.

    python examples/small_model/forgetting.py runs/small_model runs/mix-compare/*/final

The texts are drawn as pretrain.py draws them, with another seed; a row's ± is twice the standard error over
texts. What a model loses here while it gains on problems is what it forgot.
"""

import random
import sys
from pathlib import Path

import torch
from pretrain import IGNORED, PAD
from texts import draw_text
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from klent.models.load import load_policy

TEXTS = 2000


@torch.no_grad()
def losses(folder: str) -> torch.Tensor:
    """Mean nats per character of each text."""
    loaded = load_policy(folder)
    rng = random.Random("forgetting")
    end = loaded.tokenizer.eos_token_id
    lines = [
        torch.tensor([*loaded.tokenizer(prompt + text).input_ids, end])
        for prompt, text in (draw_text(rng) for _ in range(TEXTS))
    ]
    found = []
    for start in range(0, TEXTS, 200):
        part = lines[start : start + 200]
        ids = pad_sequence(part, batch_first=True, padding_value=PAD)
        labels = pad_sequence(part, batch_first=True, padding_value=IGNORED)[:, 1:]
        logits = loaded.model(input_ids=ids).logits[:, :-1]
        nats = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        found.append(nats.sum(dim=1) / (labels != IGNORED).sum(dim=1))
    return torch.cat(found)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("name model folders: forgetting.py runs/small_model runs/NAME/final")
    first: torch.Tensor | None = None
    for folder in sys.argv[1:]:
        nats = losses(folder)
        first = nats if first is None else first
        more = nats - first
        margin = 2 * float(more.std()) / TEXTS**0.5
        path = Path(folder)
        name = path.parent.name if path.name == "final" else path.name
        change = f"{float(more.mean()):+.3f} ± {margin:.3f}"
        print(f"{name:<32} {float(nats.mean()):.3f}  more than the first: {change}")


if __name__ == "__main__":
    main()
