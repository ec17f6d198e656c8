"""Pretrain a small language model from scratch, and write the problems to post-train it on.

    python examples/small_model/pretrain.py                     # writes runs/small_model, in a few minutes

A Llama of 1.1 million parameters that writes one character at a time, trained on arithmetic texts
(texts.py). The same seed on the same machine gives the same weights.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from texts import CHARACTERS, answer, draw_problem, draw_text, show
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<end>"]
PAD, END = range(len(SPECIAL))
CONTEXT = 128
HELDOUT = 200
IGNORED = -100  # transformers' mark for a position without a loss


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; `<end>` ends a text."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def build_model(hidden: int, layers: int) -> LlamaForCausalLM:
    """Random weights, drawn with the global seed."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 32),
        num_key_value_heads=max(1, hidden // 32),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
        initializer_range=0.02,
    )
    return LlamaForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, rows: int, seed: int, left_out: set[str]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """An endless stream of token ids and labels; no text is about a held-out problem."""
    rng = random.Random(f"{seed}/texts")
    while True:
        lines = []
        while len(lines) < rows:
            prompt, text = draw_text(rng)
            if prompt not in left_out:
                lines.append(torch.tensor([*tokenizer(prompt + text).input_ids, END]))
        yield (
            pad_sequence(lines, batch_first=True, padding_value=PAD),
            pad_sequence(lines, batch_first=True, padding_value=IGNORED),
        )


def pretrain(
    *, steps: int, rows: int, hidden: int, layers: int, lr: float, seed: int, left_out: set[str]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Next-character prediction with AdamW; the learning rate rises for 5% of the steps, then falls to 0."""
    torch.manual_seed(seed)
    tokenizer, model = build_tokenizer(), build_model(hidden, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = max(1, steps // 20)
    started, seen = time.perf_counter(), 0.0
    source = batches(tokenizer, rows, seed, left_out)
    for step in range(1, steps + 1):
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr * min(step / warmup, falling)
        ids, labels = next(source)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen = loss.item() if step == 1 else 0.98 * seen + 0.02 * loss.item()
        if step % 100 == 0 or step == steps:
            print(f"step {step}/{steps} loss {seen:.3f} {time.perf_counter() - started:.0f} s", flush=True)
    return model.eval(), tokenizer


def write_problems(folder: Path, train: int, heldout: int, seed: int) -> set[str]:
    """Write `train.jsonl` and `heldout.jsonl`, no prompt in both; returns the held-out prompts."""
    rng = random.Random(f"{seed}/problems")
    rows: dict[str, str] = {}
    while len(rows) < train + heldout:
        problem = draw_problem(rng)
        rows[show(problem)] = str(answer(problem))
    lines = [json.dumps({"prompt": prompt, "answer": right}) + "\n" for prompt, right in rows.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heldout.jsonl").write_text("".join(lines[:heldout]))
    (folder / "train.jsonl").write_text("".join(lines[heldout:]))
    return set(list(rows)[:heldout])


def main() -> None:
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, default=Path("runs/small_model"), help="folder of the model")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rows", type=int, default=48, help="texts in a step")
    parser.add_argument("--hidden", type=int, default=128, help="width of the model, a multiple of 32")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=4000, help="training problems to write")
    options = parser.parse_args()
    left_out = write_problems(options.out / "problems", options.problems, HELDOUT, options.seed)
    model, tokenizer = pretrain(
        steps=options.steps,
        rows=options.rows,
        hidden=options.hidden,
        layers=options.layers,
        lr=options.lr,
        seed=options.seed,
        left_out=left_out,
    )
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"wrote {options.out}: {size:,} parameters")


if __name__ == "__main__":
    main()
