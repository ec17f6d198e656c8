"""Architectures of the installed transformers: sampler and trainer against an eager pass over each row alone.

The witness has no cache, no padding, no packing and no klent in it. Rows are of unequal lengths and cross the windows
and chunks of each configuration. A model is exact in eval and train mode, or refused in words before a step.
"""

from pathlib import Path

import pytest
import torch
from tiny import CONTEXT, TURN_END, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from klent.config import Lora
from klent.errors import ModelError
from klent.head.stats import TokenStats
from klent.models.load import LoadedModel, load_policy
from klent.models.save import save_model
from klent.policies.causal_lm.packing import Completion, Packing, make_groups, pack
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt

TEMPERATURE = 0.9
TOLERANCE = 2e-5
ROUNDING = {"qwen3_5_text": 5e-5}  # its chunks are summed in another order than its single steps
SMALL = {
    "vocab_size": len(tiny_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": TURN_END,
    "attention_dropout": 0.1,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
SSM = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_d_conv": 4,
}
LEFT_OUT = object()
CASES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {"attn_logit_softcapping": 2.0, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    "gpt_neox": {},
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT},
    "falcon": {"alibi": True, "new_decoder_architecture": False, "head_dim": LEFT_OUT},
    "olmo2": {},
    "olmo3": {"sliding_window": 8},
    "smollm3": {},
    "cohere2": {"sliding_window": 8},
    "granite": {"logits_scaling": 4.0},
    "starcoder2": {},
    "stablelm": {},
    "nemotron": {},
    "glm4": {},
    "exaone4": {"sliding_window": 8},
    "nanochat": {},
    "mixtral": {**MOE, "router_jitter_noise": 0.1},
    "qwen3_moe": MOE,
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 4,
    },
    "gpt_oss": {**MOE, "sliding_window": 8},
    "llama4_text": {**MOE, "intermediate_size_mlp": 64, "attention_chunk_size": 8, "layer_types": None},
    "qwen3_5_text": LINEAR,
    "qwen3_next": {**LINEAR, **MOE, "shared_expert_intermediate_size": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "bamba": {**SSM, "attn_layer_indices": [1]},
    "jamba": {
        **MOE,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
    },
    "granitemoehybrid": {**SSM, **MOE, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
    "falcon_h1": SSM,
    "recurrent_gemma": {
        "lru_width": 32,
        "attention_window_size": 8,
        "block_types": ["recurrent", "attention"],
    },
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8, "expand": 2},
    "rwkv": {"attention_hidden_size": 32, "context_length": CONTEXT},
}
REFUSED: dict[str, str] = {}
PROMPTS = ["What is 1?", "Hi", "Ten, nine, eight."]


def make_folder(kind: str, path: Path) -> Path:
    settings = {key: value for key, value in (SMALL | CASES[kind]).items() if value is not LEFT_OUT}
    config = AutoConfig.for_model(kind, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # norms and biases that are not what they start as
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@torch.no_grad()
def alone(model: PreTrainedModel, episode: Episode) -> torch.Tensor:
    """Log-probability and entropy of an episode's tokens, ``[2, L]``."""
    row = [*episode.prompt_ids, *episode.tokens.tolist()]
    logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, len(episode.prompt_ids) - 1 : -1]
    logp = (logits.double() / TEMPERATURE).log_softmax(dim=-1)
    taken = logp.gather(-1, episode.tokens[:, None])[:, 0]
    return torch.stack([taken, -(logp.exp() * logp).sum(dim=-1)]).float()


def sampled(loaded: LoadedModel) -> list[Episode]:
    options = SamplingOptions(max_tokens=14, temperature=TEMPERATURE)
    stops = LoadedModel(
        loaded.model, loaded.tokenizer, "", tuple(range(20, 40))
    )  # so that rows end unequally
    prompts = [Prompt(str(i), text, {}) for i, text in enumerate(PROMPTS)]
    return TransformersEngine(stops, options).generate(prompts, group_size=3, seed=0)


def read(policy: CausalPolicy, episodes: list[Episode], *, training: bool) -> TokenStats:
    policy.model.train(training)
    shared = policy.packing.shared
    items = [Completion(i, e.prompt_ids, e.tokens, i // 3) for i, e in enumerate(episodes)]
    stats = policy(pack(make_groups(items, shared=shared, budget=4096), shared=shared))
    policy.model.eval()
    return stats


def numbers(stats: TokenStats) -> torch.Tensor:
    assert stats.entropy is not None
    return torch.stack([stats.logp, stats.entropy]).detach()


def check(
    loaded: LoadedModel, policy: CausalPolicy, witness: PreTrainedModel, tolerance: float = TOLERANCE
) -> list[Episode]:
    """Sampler, and trainer in both modes, against the witness; returns what was sampled."""
    episodes = sampled(loaded)
    right = torch.cat([alone(witness, episode) for episode in episodes], dim=1)
    said = [torch.stack([episode.logp, episode.entropy]) for episode in episodes]
    torch.testing.assert_close(torch.cat(said, dim=1), right, atol=tolerance, rtol=0)
    for training in (False, True):
        actual = numbers(read(policy, episodes, training=training))
        torch.testing.assert_close(actual, right, atol=tolerance, rtol=0)
    return episodes


def step(policy: CausalPolicy, episodes: list[Episode]) -> None:
    """Two steps of gradient ascent, each weight by a thousandth of its own size at most."""
    for _ in range(2):
        policy.model.zero_grad()
        read(policy, episodes, training=True).logp.sum().backward()
        for weight in policy.trainable().values():
            if weight.grad is not None:
                weight.data += 0.01 * weight.grad / weight.grad.norm().clamp_min(1e-9)


def built(folder: Path) -> CausalPolicy:
    return CausalPolicy(load_policy(str(folder)).model, temperature=TEMPERATURE)


@pytest.mark.parametrize("kind", CASES)
def test_sampler_and_trainer_are_the_model_or_refuse_it(kind: str, tmp_path: Path) -> None:
    folder = make_folder(kind, tmp_path / kind)
    if kind in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[kind]):
            built(folder)
        return
    witness = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    loaded = load_policy(str(folder))
    policy = CausalPolicy(loaded.model, temperature=TEMPERATURE)
    policy.packing = Packing(takes_shared_prompt(policy, longest=CONTEXT), 4096)
    episodes = check(loaded, policy, witness)
    assert len({len(episode.tokens) for episode in episodes}) > 2
    before = numbers(read(policy, episodes, training=False))
    step(policy, episodes)
    assert (numbers(read(policy, episodes, training=False)) - before)[0].mean() > 1e-4
    witness.load_state_dict(loaded.model.state_dict())
    check(loaded, policy, witness, ROUNDING.get(kind, TOLERANCE))


ADAPTED: dict[str, str | tuple[str, ...]] = {
    "llama": "all-linear",
    "gemma2": "all-linear",
    "llama4_text": ("q_proj", "v_proj"),
    "qwen3_next": ("q_proj", "o_proj"),
    "falcon_h1": ("q_proj", "v_proj"),
}


@pytest.mark.parametrize(
    ("kind", "words"), [("llama4_text", "name others"), ("qwen3_next", "cannot be merged .*q_proj")]
)
def test_an_adapter_on_what_is_no_linear_layer_is_refused(kind: str, words: str, tmp_path: Path) -> None:
    folder = make_folder(kind, tmp_path / kind)
    with pytest.raises(ModelError, match=words):
        load_policy(str(folder), lora=Lora(rank=2))


@pytest.mark.parametrize("kind", ADAPTED)
def test_an_adapter_that_has_learned_is_the_merged_model(kind: str, tmp_path: Path) -> None:
    folder = make_folder(kind, tmp_path / kind)
    loaded = load_policy(str(folder), lora=Lora(rank=2, alpha=4.0, target_modules=ADAPTED[kind]))
    policy = CausalPolicy(loaded.model, temperature=TEMPERATURE)
    policy.packing = Packing(takes_shared_prompt(policy, longest=CONTEXT), 4096)
    generator = torch.Generator().manual_seed(0)
    for weight in policy.trainable().values():
        weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "merged")
    witness = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    check(loaded, policy, witness)
