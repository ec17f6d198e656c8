"""Attention in blocks: the same numbers and gradients as under one mask, and nothing computed beside them."""

import pytest
import torch
from tiny import tiny_model

from klent.models.load import recompute_activations
from klent.policies.causal_lm import blocks as blocks_module
from klent.policies.causal_lm.blocks import block_attention, find_blocks
from klent.policies.causal_lm.packing import Completion, make_groups, pack
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import takes_shared_prompt

PROMPTS = [[5, 6, 7, 8, 9], [11, 12]]
LENGTHS = [[4, 1, 7], [3, 2, 1, 1]]  # a completion of one token is never an input


def rows(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    items = [
        Completion(10 * g + k, PROMPTS[g], torch.randint(3, 40, (n,), generator=generator))
        for g, group in enumerate(lengths)
        for k, n in enumerate(group)
    ]
    return pack(make_groups(items, shared=True, budget=1000), shared=True)


def seen(owner: torch.Tensor) -> set[tuple[int, int, int]]:
    """Who sees whom, by the rule and one pair at a time."""
    pairs = set()
    for r, line in enumerate(owner.tolist()):
        for i, mine in enumerate(line):
            for j, other in enumerate(line[: i + 1]):
                if mine >= 0 and other in (0, mine):
                    pairs.add((r, i, j))
    return pairs


def test_blocks_hold_every_pair_that_sees_and_no_other():
    packed = rows()
    owner = packed.owner
    blocks, length = find_blocks(owner, packed.segment), owner.shape[1]
    pairs = set()
    counts = (owner == 0).sum(dim=1).tolist()
    for r, positions in enumerate(blocks.prompt.tolist()):
        for i in range(counts[r]):
            pairs |= {(r, positions[i] % length, positions[j] % length) for j in range(i + 1)}
    for c, r in enumerate(blocks.behind.tolist()):
        keys = blocks.prompt[r].tolist() + blocks.completion[c].tolist()
        for t, position in enumerate(blocks.completion[c].tolist()):
            if t and position == 0:
                continue  # padding
            pairs |= {
                (r, position % length, keys[j] % length) for j in (blocks.mask[c, 0, t] == 0).nonzero()[:, 0]
            }
    assert pairs == seen(owner)


def test_completions_too_long_for_a_mask_are_sequences_behind_their_prompt(monkeypatch):
    monkeypatch.setattr(blocks_module, "LARGEST_MASK", 0)
    packed = rows()
    blocks = find_blocks(packed.owner, packed.segment)
    assert blocks.mask is None
    length, width = packed.owner.shape[1], blocks.prompt.shape[1]
    lines = [*blocks.prompt.tolist(), *blocks.sequence.tolist()]
    places = [(line, place) for line in lines for place in range(len(line))]
    pairs = set()
    for token, output in enumerate(blocks.output.tolist()):
        if packed.owner.flatten()[token] < 0:
            continue
        line, place = places[output]
        assert line[place] == token
        pairs |= {(token // length, token % length, line[j] % length) for j in range(place + 1)}
    assert pairs == seen(packed.owner)
    assert blocks.sequence.shape == (len(blocks.completion), width + blocks.completion.shape[1])


@pytest.mark.parametrize("largest", [1 << 26, 0], ids=["masked", "sequences"])
@pytest.mark.parametrize(
    "lengths", [LENGTHS, [[1, 1], [1]], [[9], [2]]], ids=["mixed", "single tokens", "one"]
)
def test_values_and_gradients_are_those_of_one_mask(lengths, largest, monkeypatch):
    monkeypatch.setattr(blocks_module, "LARGEST_MASK", largest)
    model = tiny_model()
    policy, packed = CausalPolicy(model, temperature=1.0), rows(lengths)
    assert takes_shared_prompt(policy, longest=30)
    assert policy.takes_blocks
    answers = []
    for policy.takes_blocks in (True, False):
        model.zero_grad()
        stats = policy(packed)
        (stats.logp.sum() + 0.3 * stats.entropy.sum()).backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        answers.append((stats.logp.detach(), stats.entropy.detach(), grads))
    for left, right in zip(*answers, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-6)


def test_the_models_own_attention_is_put_back():
    policy = CausalPolicy(tiny_model(), temperature=1.0)
    assert takes_shared_prompt(policy, longest=30)
    policy(rows())
    assert policy.model.config._attn_implementation != block_attention.name


def test_under_gradient_checkpointing_one_mask_is_used():
    model = tiny_model()
    policy = CausalPolicy(model, temperature=1.0)
    assert takes_shared_prompt(policy, longest=30)
    plain = policy(rows()).logp
    recompute_activations(model)
    model.train()
    stats = policy(rows())
    stats.logp.sum().backward()
    torch.testing.assert_close(stats.logp, plain)
