"""REINFORCE with a group baseline in one file: sampling, reward, advantage, loss, step.

    python examples/reinforce_loop.py            # 150 steps, under 20 s on one core, no download

A Llama of one layer and random weights learns to add: after the prompt ``7+5=`` it must write the last digit
of the sum and stop, ``2.``. The reward is 1 for exactly that and 0 for anything else. Expect the mean reward
to rise from 0.01 to about 0.9, and the entropy to fall from 2.5 nats per token (log 13: it guesses) to about
0.1 (it knows). The first thing it learns is to stop after one digit.

The trainer does the same with real models, tasks and checkpoints: see ``klent train``.
"""

import argparse

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import klent
from klent import objectives as O

PLUS, EQUALS, STOP = 10, 11, 12  # 0 to 9 are the digits themselves
VOCABULARY = "0123456789+=."
MAX_TOKENS = 3


def make_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=16,
        initializer_range=0.05,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def make_prompts(count: int) -> Tensor:
    """``a + b =`` for random digits, [count, 4]."""
    a, b = torch.randint(10, (2, count))
    return torch.stack([a, torch.full_like(a, PLUS), b, torch.full_like(a, EQUALS)], dim=1)


@torch.no_grad()
def sample(model: LlamaForCausalLM, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] drawn one by one, and a mask that is True up to and including the stop token."""
    text = prompts
    for _ in range(MAX_TOKENS):
        probabilities = model(text).logits[:, -1].softmax(dim=-1)
        text = torch.cat([text, torch.multinomial(probabilities, 1)], dim=1)
    tokens = text[:, prompts.shape[1] :]
    stops = tokens == STOP
    mask = stops.cumsum(dim=1) - stops.long() == 0  # no stop before this token
    return tokens, mask


def verify(prompts: Tensor, tokens: Tensor) -> Tensor:
    """1 where the completion is the last digit of the sum and then stop, else 0, [B]."""
    digit = (prompts[:, 0] + prompts[:, 2]) % 10
    return ((tokens[:, 0] == digit) & (tokens[:, 1] == STOP)).float()


def main(
    steps: int = 150, prompts_per_step: int = 64, group_size: int = 8, seed: int = 0
) -> list[dict[str, float]]:
    torch.manual_seed(seed)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.0)
    group = torch.arange(prompts_per_step).repeat_interleave(group_size)  # which rows share a prompt
    history = []
    for step in range(1, steps + 1):
        # 1. Every prompt is answered by a group of completions, and each completion is scored.
        prompts = make_prompts(prompts_per_step)[group]
        tokens, mask = sample(model, prompts)
        reward = verify(prompts, tokens)

        # 2. The baseline is the group itself: a completion is compared with the others of its prompt. A
        #    group where all failed, or all succeeded, has advantage 0: it teaches nothing.
        advantage = O.group_advantage(reward, group, scale="std")  # [B]

        # 3. The same tokens once more, with gradient. The state at position t predicts the token at t + 1, so
        #    the states from the last prompt token to the second to last token predicted the completion.
        states = model.model(torch.cat([prompts, tokens], dim=1)).last_hidden_state
        states = states[:, prompts.shape[1] - 1 : -1]  # [B, T, H]
        logp, entropy = klent.token_stats(states, model.lm_head.weight, tokens)  # [B, T] each, nats

        # 4. L_t = -A * logp_t: raise the log-probability of every token of a good completion, lower it of a
        #    bad one, in proportion. Averaged over all tokens of the step; off the mask nothing counts.
        token_loss, _ = O.reinforce(logp, advantage.unsqueeze(1).expand_as(logp), mask)
        loss = klent.reduce_tokens(token_loss, mask, over="tokens")

        # 5. One step along the gradient.
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        row = {"reward": reward.mean().item(), "entropy": entropy[mask].mean().item()}
        history.append(row)
        if step == 1 or step % 10 == 0:
            shown = "".join(VOCABULARY[i] for i in [*prompts[0], *tokens[0][mask[0]]])
            print(f"step {step:3d}  reward {row['reward']:.3f}  entropy {row['entropy']:.3f} nats  {shown}")
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="REINFORCE with a group baseline, in one file.")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(steps=options.steps, seed=options.seed)
