"""Groups behind one prompt against rows of their own: the same log-probabilities, the same gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from klent.policies.causal_lm import packing
from klent.policies.causal_lm.packing import (
    Completion,
    join_groups,
    make_groups,
    make_microbatches,
    pack,
    segments,
)
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import (
    head_is_linear,
    head_options,
    takes_joined_rows,
    takes_shared_prompt,
)

SIZE = 40


def completions(lengths: dict[tuple[int, ...], list[int]]) -> list[Completion]:
    """Completions of the given lengths for each prompt, with made-up tokens."""
    found: list[Completion] = []
    for prompt, counts in lengths.items():
        for count in counts:
            tokens = torch.tensor([(13 * len(found) + 5 * i + 1) % SIZE for i in range(count)])
            found.append(Completion(len(found), list(prompt), tokens))
    return found


ITEMS = completions({(3, 1, 4): [5, 1, 3], (2, 7, 1, 8, 2, 8): [4, 6], (9,): [2, 2, 7]})


def rows_of(items: list[Completion], *, shared: bool, budget: int, joined: bool) -> list[list[Completion]]:
    groups = make_groups(items, shared=shared, budget=budget)
    return join_groups(groups, longest=budget) if joined else groups


def on_grid(
    policy: CausalPolicy, items: list[Completion], *, shared: bool, budget: int, joined: bool = False
) -> torch.Tensor:
    grid = torch.zeros(len(items), max(len(i.tokens) for i in items))
    groups = rows_of(items, shared=shared, budget=budget, joined=joined)
    for part in make_microbatches(groups, budget=budget):
        rows = pack(part, shared=shared)
        grid = grid.index_put((rows.row, rows.column), policy(rows).logp)
    return grid


def one_by_one(model, items: list[Completion]) -> torch.Tensor:
    """The definition: each sequence alone, full logits, log softmax, gather."""
    grid = torch.zeros(len(items), max(len(i.tokens) for i in items))
    for item in items:
        ids = torch.tensor([item.prompt_ids + item.tokens.tolist()])
        logp = model(input_ids=ids).logits[0, len(item.prompt_ids) - 1 : -1].log_softmax(-1)
        grid[item.index, : len(item.tokens)] = logp.gather(1, item.tokens[:, None])[:, 0]
    return grid


SINGLE = completions({(3, 1, 4): [5], (2, 7, 1, 8, 2, 8): [6], (9,): [2], (1, 2): [1]})  # one completion each


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("items", [ITEMS, SINGLE], ids=["groups", "single"])
@pytest.mark.parametrize(("shared", "joined"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("budget", [8, 20, 4096])
def test_log_probs_and_gradients_are_those_of_each_sequence_alone(shared, joined, budget, items, blocks):
    weight = torch.randn(len(items), 7, generator=torch.Generator().manual_seed(0))[
        :, : max(len(i.tokens) for i in items)
    ]
    policy = CausalPolicy(tiny_model(), temperature=1.0)
    policy.takes_blocks = blocks
    packed = on_grid(policy, items, shared=shared, budget=budget, joined=joined)
    (packed * weight).sum().backward()

    model = tiny_model()
    alone = one_by_one(model, items)
    (alone * weight).sum().backward()

    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=0)
    for p, q in zip(policy.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4)


def test_sharing_computes_the_prompt_once():
    shared = pack(make_groups(ITEMS[:3], shared=True, budget=99), shared=True)
    apart = pack(make_groups(ITEMS[:3], shared=False, budget=99), shared=False)
    assert shared.tokens == 3 + 4 + 0 + 2  # a completion's last token predicts nothing, so it is not computed
    assert apart.tokens == 3 * (3 + 4)


SHAPES = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=5)), min_size=1, max_size=5
)


def shaped(shape: list[tuple[int, list[int]]]) -> list[Completion]:
    return completions({tuple(range(i, i + prompt)): counts for i, (prompt, counts) in enumerate(shape)})


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(4, 60), st.booleans(), st.booleans())
def test_every_token_is_packed_once_and_budgets_hold(shape, budget, shared, joined):
    items = shaped(shape)
    seen = []
    groups = rows_of(items, shared=shared, budget=budget, joined=joined and shared)
    for part in make_microbatches(groups, budget=budget):
        rows = pack(part, shared=shared)
        seen += list(zip(rows.row.tolist(), rows.column.tolist(), rows.target.tolist(), strict=True))
        single = len(part) == 1 and len(part[0]) == 1
        assert single or rows.tokens <= budget
    wanted = [(i.index, c, t) for i in items for c, t in enumerate(i.tokens.tolist())]
    assert sorted(seen) == wanted


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(20, 60), st.sets(st.integers(0, 24)))
def test_some_of_the_joined_rows_joined_again_are_the_same_rows(shape, longest, chosen):
    """A micro-batch is laid out from its completions alone, as it was when the step was cut."""
    rows = rows_of(shaped(shape), shared=True, budget=longest, joined=True)
    kept = [row for number, row in enumerate(rows) if number in chosen]
    items = sorted((item for row in kept for item in row), key=lambda item: item.index)
    assert rows_of(items, shared=True, budget=longest, joined=True) == kept


def test_joined_rows_compute_no_padding():
    lengths = {(k, *range(k)): [1 + 3 * k % 11] for k in range(12)}
    items = completions(lengths)
    wanted = sum(len(item.prompt_ids) + len(item.tokens) - 1 for item in items)
    (row,) = rows_of(items, shared=True, budget=4096, joined=True)
    assert pack([row], shared=True).tokens == wanted
    longest = max(len(item.prompt_ids) + len(item.tokens) - 1 for item in items)
    assert pack(make_groups(items, shared=True, budget=4096), shared=True).tokens == 12 * longest > wanted
    assert [len(part) for part in segments(row)] == [1] * 12


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("items", [ITEMS, SINGLE], ids=["groups", "single"])
def test_a_joined_prompt_reads_nothing_of_the_others(items, blocks):
    """Whatever one prompt and its completions say, the numbers of the others stay bit for bit what they were."""
    policy = CausalPolicy(tiny_model(), temperature=1.0)
    policy.takes_blocks = blocks
    (row,) = rows_of(items, shared=True, budget=4096, joined=True)
    with torch.no_grad():
        before = policy(pack([row], shared=True))
    for disturbed in segments(row):
        changed = [
            Completion(item.index, [token + 30 for token in item.prompt_ids], item.tokens + 30)
            if item in disturbed
            else item
            for item in row
        ]
        rows = pack([changed], shared=True)
        with torch.no_grad():
            after = policy(rows)
        others = ~torch.isin(rows.row, torch.tensor([item.index for item in disturbed]))
        for name in ("logp", "entropy"):
            assert torch.equal(getattr(before, name)[others], getattr(after, name)[others])
            assert not torch.equal(getattr(before, name)[~others], getattr(after, name)[~others])


def config_model(config) -> CausalPolicy:
    torch.manual_seed(0)
    return CausalPolicy(AutoModelForCausalLM.from_config(config).eval(), temperature=1.0)


SMALL = {
    "vocab_size": SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SMALL),
        MistralConfig(**SMALL, sliding_window=None),
        GPT2Config(vocab_size=SIZE, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    ],
    ids=lambda c: c.model_type,
)
def test_usual_models_share_prompts_and_say_so(config):
    policy = config_model(config)
    assert policy.fused
    assert takes_shared_prompt(policy, longest=50)
    assert takes_joined_rows(policy, longest=50)
    alone = one_by_one(policy.model, ITEMS)
    for joined in (False, True):
        packed = on_grid(policy, ITEMS, shared=True, budget=99, joined=joined)
        torch.testing.assert_close(packed, alone, atol=2e-5, rtol=0)


def test_a_recurrent_model_is_found_out_and_padded_rows_are_exact():
    policy = config_model(MambaConfig(vocab_size=SIZE, hidden_size=16, num_hidden_layers=2, state_size=4))
    assert not takes_shared_prompt(policy, longest=50)
    assert not takes_joined_rows(policy, longest=50)
    torch.testing.assert_close(
        on_grid(policy, ITEMS, shared=False, budget=99), one_by_one(policy.model, ITEMS), atol=2e-5, rtol=0
    )


def test_a_window_shorter_than_the_sequence_is_found_out():
    policy = config_model(MistralConfig(**SMALL, sliding_window=16))
    assert takes_shared_prompt(policy, longest=16)
    assert not takes_shared_prompt(policy, longest=17)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (
            Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0, sliding_window=4096),
            {"softcap": 2.0},
        ),
        (CohereConfig(**SMALL, logit_scale=0.25), {"scale": 0.25}),
        (GraniteConfig(**SMALL, logits_scaling=8.0), {"scale": 0.125}),
        (GemmaConfig(**SMALL, head_dim=8), {}),
    ],
    ids=["softcap", "scale", "divisor", "plain"],
)
def test_what_a_model_does_to_its_logits_is_found_in_its_configuration(config, options):
    policy = config_model(config)
    assert policy.fused
    assert policy.head_options == head_options(policy.model) == options
    assert head_is_linear(policy.model) == (options == {})
    torch.testing.assert_close(
        on_grid(policy, ITEMS, shared=False, budget=99), one_by_one(policy.model, ITEMS), atol=2e-5, rtol=0
    )


def test_a_number_that_the_model_does_not_use_is_not_used():
    model = config_model(GemmaConfig(**SMALL, head_dim=8)).model
    model.config.final_logit_softcapping = 0.5
    assert head_options(model) == {}


def test_logits_of_another_kind_go_through_the_models_own_head():
    model = config_model(GemmaConfig(**SMALL, head_dim=8)).model
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + 0.5 * output.square())
    policy = CausalPolicy(model, temperature=1.0)
    assert not policy.fused
    torch.testing.assert_close(
        on_grid(policy, ITEMS, shared=False, budget=99), one_by_one(policy.model, ITEMS), atol=2e-5, rtol=0
    )


def test_a_wrong_mask_would_be_seen(monkeypatch):
    """The check that decides on sharing must fail when completions can see one another."""
    policy = CausalPolicy(tiny_model(), temperature=1.0)
    assert takes_shared_prompt(policy, longest=50)
    monkeypatch.setattr(
        packing,
        "_block_mask",
        lambda owner, segment: torch.full((owner.shape[1],) * 2, -1e30).triu(1).expand(len(owner), 1, -1, -1),
    )
    assert not takes_shared_prompt(policy, longest=50)


def one_row_for_all(owner: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """The right mask of a row with one prompt: joined prompts see one another."""
    return packing_mask(owner, torch.zeros_like(segment))


packing_mask = packing._block_mask


def test_prompts_that_see_one_another_would_be_seen(monkeypatch):
    policy = CausalPolicy(tiny_model(), temperature=1.0)
    assert takes_shared_prompt(policy, longest=50)
    assert takes_joined_rows(policy, longest=50)
    monkeypatch.setattr(packing, "_block_mask", one_row_for_all)
    assert takes_shared_prompt(policy, longest=50)
    assert not takes_joined_rows(policy, longest=50)


def test_positions_that_run_on_would_be_seen():
    """A model that counts positions by itself has the mask right and the numbers wrong."""
    policy = CausalPolicy(tiny_model(), temperature=1.0)
    forward = policy.model.model.forward

    def counting(**inputs: object) -> object:
        ids = inputs["input_ids"]
        positions = torch.arange(ids.shape[1]).expand_as(ids) if len(ids) == 1 else inputs["position_ids"]
        return forward(**{**inputs, "position_ids": positions})

    policy.model.model.forward = counting
    assert takes_shared_prompt(policy, longest=50)
    assert not takes_joined_rows(policy, longest=50)


def test_no_step_of_the_backward_depends_on_the_order_of_threads():
    """Indexing's backward adds repeated rows with atomics: equal up to rounding, and not bit for bit."""
    policy = CausalPolicy(tiny_model(), temperature=1.0)
    rows = pack(make_groups(ITEMS, shared=True, budget=99), shared=True)
    assert len(rows.source.unique()) < len(rows.source)  # the prompt's last state is used more than once
    todo, seen = [policy(rows).logp.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert "IndexSelectBackward0" in names
    assert not {name for name in names if name.startswith(("IndexBackward", "IndexPutBackward"))}
