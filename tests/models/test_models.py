"""Models are found, loaded, prompted and saved; what is wrong with one is answer in one sentence."""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONTEXT, END, PAD, TURN_END, tiny_folder, tiny_model, tiny_tokenizer
from transformers import AttentionInterface, AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from klent.config import Lora
from klent.errors import DataError, ModelError
from klent.models import exact, load, locate
from klent.models.adapter import add_adapter, merged_weights
from klent.models.chat import context_length
from klent.models.device import find_device
from klent.models.load import LoadedModel, load_policy
from klent.models.locate import locate_model
from klent.models.save import save_model
from klent.policies.causal_lm.model import recomputes
from klent.rollout.dataset_engine import DatasetEngine
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.prompt import Prompt

TEXT = "What is 12 + 34?"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(original, tmp_path / "tiny")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KLENT_CACHE", str(tmp_path / "cache"))


def logits(model, text: str = TEXT) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tiny_tokenizer()(text).input_ids])).logits


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- find ---------------------------------------------------------------------------------------


def test_an_alias_that_is_not_pulled_names_the_command() -> None:
    with pytest.raises(ModelError, match="run `klent models pull smollm2-135m`"):
        locate_model("smollm2-135m")


def test_an_unknown_alias_gets_the_nearest_one() -> None:
    with pytest.raises(ModelError, match=r"'smollm-135m'. Did you mean 'smollm2-135m'"):
        locate_model("smollm-135m")
    with pytest.raises(ModelError, match=r"no model is called 'zzz'. A model is an alias"):
        locate_model("zzz")


def test_a_folder_and_a_hub_id_are_taken_as_they_are(folder: Path, monkeypatch) -> None:
    assert locate_model(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate_model("~/tiny") == folder
    monkeypatch.chdir(folder.parent)
    assert locate_model("tiny") == Path("tiny")
    assert locate_model("org/name-1.5B") == "org/name-1.5B"


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "../a/b", "a/b/c", "folder/"])
def test_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no model folder at {name}"):
        locate_model(name)


def break_folder(folder: Path, how: str) -> Path:
    weights = folder / "model.safetensors"
    match how:
        case "is a file":
            return weights
        case "empty":
            shutil.rmtree(folder)
            folder.mkdir()
        case "adapter":
            (folder / "config.json").rename(folder / "adapter_config.json")
        case "run":
            for name in os.listdir(folder):
                (folder / "final").mkdir(exist_ok=True)
                (folder / name).rename(folder / "final" / name)
        case "config is not JSON":
            (folder / "config.json").write_text('{"model_type": ')
        case "config is a list":
            (folder / "config.json").write_text("[]")
        case "no weights":
            weights.unlink()
        case "pickle":
            weights.rename(folder / "pytorch_model.bin")
        case "shard missing":
            shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
            weights.rename(folder / shards["a"])
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        case "weights cut short":
            os.truncate(weights, weights.stat().st_size // 2)
        case "tensor missing":
            tensors = load_file(weights)
            del tensors["model.norm.weight"]
            save_file(tensors, weights, metadata={"format": "pt"})
        case "tensor of another shape":
            tensors = load_file(weights) | {"model.norm.weight": torch.ones(7)}
            save_file(tensors, weights, metadata={"format": "pt"})
        case "unknown type":
            edit_json(folder / "config.json", model_type="nope")
        case "not causal":
            edit_json(folder / "config.json", model_type="t5")
        case "quantised":
            edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
        case "own code":
            edit_json(
                folder / "config.json",
                model_type="odd",
                auto_map={"AutoConfig": "odd.Odd", "AutoModelForCausalLM": "odd.M"},
            )
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
            (folder / "tokenizer_config.json").unlink()
        case "tokenizer damaged":
            (folder / "tokenizer.json").write_text('{"version"')
        case "end beyond the embedding":
            tokenizer = tiny_tokenizer()
            tokenizer.add_special_tokens({"eos_token": "<end>"})
            tokenizer.save_pretrained(folder)
    return folder


BROKEN = {
    "is a file": "is a file; a model is a folder",
    "empty": r"has no config\.json, so it is not a model",
    "adapter": r"has no config\.json: it is a LoRA adapter",
    "run": r"it is a run, and its trained model is .*final",
    "config is not JSON": r"config\.json is damaged: it is not JSON",
    "config is a list": r"config\.json is damaged: it is not a JSON object",
    "no weights": r"has no weights: there is no \*\.safetensors",
    "pickle": r"only pickled weights \(pytorch_model\.bin\)",
    "shard missing": r"is incomplete: model-00002-of-00002\.safetensors is missing",
    "weights cut short": "its weights are damaged .*Copy or pull it again",
    "tensor missing": r"lacks 1 of its weights, such as model\.norm\.weight",
    "tensor of another shape": r"1 weight whose shape contradicts config\.json, such as model\.norm\.weight",
    "unknown type": "model type `nope`",
    "not causal": "it is not a causal language model",
    "quantised": "has quantised weights, which cannot be trained",
    "own code": "set trust_remote_code: true",
    "no tokenizer": r"cannot load the tokenizer .*no usable tokenizer\.json",
    "tokenizer damaged": "cannot load the tokenizer .*line 1",
    "end beyond the embedding": "'<end>', token 198, is the stop token of .* has only 198 tokens",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence(folder: Path, how: str, capfd) -> None:
    with pytest.raises(ModelError, match=BROKEN[how]) as caught:
        load_policy(str(break_folder(folder, how)))
    assert str(folder.name) in str(caught.value)
    assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_folder_that_may_not_be_read(folder: Path, monkeypatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ModelError, match=r"cannot read the model folder .*: Permission denied"):
        locate_model(str(folder))


# --- the hub ------------------------------------------------------------------------------------


def test_a_hub_model_is_downloaded_without_pickles_or_code(folder: Path, monkeypatch) -> None:
    requests = []

    def snapshot(repo: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        requests.append((repo, "*.py" in allow_patterns, any("bin" in pattern for pattern in allow_patterns)))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    loaded = load_policy("org/tiny")
    assert loaded.source == "org/tiny"
    assert torch.equal(logits(loaded.model), logits(tiny_model()))
    locate.download("org/tiny", trust_remote_code=True)
    assert requests == [("org/tiny", False, False), ("org/tiny", True, False)]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("GatedRepoError", "org/tiny is gated: accept its terms"),
        ("RepositoryNotFoundError", "neither a folder here nor a public model on the hub"),
        ("LocalEntryNotFoundError", "is not a folder here, and the hub could not be reached"),
        ("RuntimeError", "cannot download org/tiny: first line$"),
    ],
)
def test_what_the_hub_may_answer(monkeypatch, kind: str, answer: str) -> None:
    import huggingface_hub.errors

    error = getattr(huggingface_hub.errors, kind, RuntimeError)

    def fail(repo: str, **options: object) -> str:
        raise error.__new__(error) if error is not RuntimeError else RuntimeError("first line\nsecond")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=answer):
        load_policy("org/tiny")


# --- load ---------------------------------------------------------------------------------------


def test_a_loaded_policy_is_the_saved_model(folder: Path, capfd) -> None:
    loaded = load_policy(str(folder))
    assert torch.equal(logits(loaded.model), logits(tiny_model()))
    assert not torch.equal(logits(loaded.model), logits(tiny_model(seed=1)))
    assert loaded.source == str(folder)
    assert not loaded.model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "sdpa"
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_loading_leaves_transformers_as_talkative_as_it_was(folder: Path) -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    load_policy(str(folder))
    with pytest.raises(ModelError):
        load_policy(str(break_folder(folder, "not causal")))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_model_is_loaded_onto_its_device(original: Path, monkeypatch) -> None:
    assert {p.device.type for p in load_policy(str(original), device="cpu").model.parameters()} == {"cpu"}
    moved = load_policy(str(original), device=torch.device("meta")).model
    assert {p.device.type for p in moved.parameters()} == {"meta"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == find_device() == torch.device("cpu")
    with pytest.raises(
        ModelError, match=r"device 'cuda:1' is not on this machine: (it has 0|torch .* without CUDA)"
    ):
        load_policy(str(original), device="cuda:1")
    with pytest.raises(ModelError, match="device 'gpu' is not one of auto, cpu, cuda, cuda:N"):
        load_policy(str(original), device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda")


def test_dtype(folder: Path) -> None:
    loaded = load_policy(str(folder), dtype="bfloat16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    with pytest.raises(ModelError, match="dtype 'fp16' is not one of float32, bfloat16, float16"):
        load_policy(str(folder), dtype="fp16")


def test_dropout_of_the_base_model_is_off(folder: Path) -> None:
    edit_json(folder / "config.json", attention_dropout=0.5)
    noisy = AutoModelForCausalLM.from_pretrained(folder).train()
    assert not torch.equal(logits(noisy), logits(noisy))
    loaded = load_policy(str(folder)).model
    quiet = logits(loaded)
    assert torch.equal(logits(loaded.train()), quiet)


def test_gradient_checkpointing_changes_memory_and_not_gradients(folder: Path) -> None:
    plain = load_policy(str(folder)).model.train()
    sparing = load_policy(str(folder), gradient_checkpointing=True).model.train()
    assert recomputes(sparing)
    ids = torch.tensor([tiny_tokenizer()(TEXT).input_ids])
    calls = []
    sparing.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    for model in (plain, sparing):
        model(ids).logits.logsumexp(-1).sum().backward()
    assert len(calls) == 2  # forward, and again in the backward pass
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, sparing.get_parameter(name).grad, rtol=1e-5, atol=1e-6)


def test_a_pad_token_is_found_where_there_is_none(folder: Path) -> None:
    assert load_policy(str(folder)).tokenizer.pad_token_id == PAD
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_policy(str(folder)).tokenizer.pad_token_id == TURN_END


def test_a_tokenizer_with_more_tokens_than_the_model_refuses_only_those(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(folder)
    loaded = load_policy(str(folder))
    assert (len(loaded.tokenizer), loaded.rows) == (200, 198)
    assert loaded.tokenizer.pad_token_id < 198  # it is looked up, though it is masked
    engine = TransformersEngine(loaded, SamplingOptions(max_tokens=2))
    assert len(engine.generate([Prompt("a", TEXT)], group_size=2, seed=0)) == 2
    with pytest.raises(
        DataError, match=r"prompt b contains '<image>', token 198, .* no embedding: it has 198"
    ):
        engine.generate([Prompt("a", TEXT), Prompt("b", "See <image>")], group_size=2, seed=0)
    dataset = DatasetEngine(loaded, max_tokens=20)
    with pytest.raises(DataError, match="c with its completion contains '<image>'"):
        dataset.generate([Prompt("c", TEXT, {"completion": "<image>"})], group_size=1, seed=0)


# --- attention and noise ------------------------------------------------------------------------


def capped_folder(path: Path, cap: float) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(
        **sizes, vocab_size=198, num_key_value_heads=2, head_dim=8, attn_logit_softcapping=cap
    )
    config.eos_token_id, config.bos_token_id, config.pad_token_id = TURN_END, None, PAD
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Gemma2ForCausalLM(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("cap", [2.0, 50.0])
def test_attention_that_sdpa_cannot_express_is_eager(tmp_path: Path, cap: float) -> None:
    """Also where fresh weights hide it: at a cap of 50 their numbers agree to 1e-6, and those of training do not."""
    folder = capped_folder(tmp_path / "capped", cap)
    right = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    loaded = load_policy(str(folder))
    assert loaded.attention == loaded.model.config._attn_implementation == "eager"
    assert torch.equal(logits(loaded.model), logits(right))
    with pytest.raises(
        ModelError, match=r"attention: sdpa does not compute this model's attention .*softcap"
    ):
        load_policy(str(folder), attention="sdpa")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU both can train")
def test_a_kernel_that_cannot_train_here_is_refused(folder: Path) -> None:
    for attention, reason in (
        ("flex", "FlexAttention does not support backward on CPU"),
        ("flash", "FlashAttention"),
    ):
        with pytest.raises(
            ModelError, match=f"attention: {attention} cannot train this model here .*{reason}"
        ):
            load_policy(str(folder), attention=attention)


def test_a_kernel_is_held_against_an_eager_pass(folder: Path, monkeypatch) -> None:
    def kernel(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **rest):
        output, weights = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **rest
        )
        return output * scale, weights

    AttentionInterface.register("a_kernel", kernel)
    AttentionMaskInterface.register("a_kernel", sdpa_mask)
    monkeypatch.setitem(exact.KERNELS, "flex", "a_kernel")
    scale = 1.0
    assert load_policy(str(folder), attention="flex").model.config._attn_implementation == "a_kernel"
    assert load_policy(str(folder), attention="flex", lora=Lora(rank=2)).attention == "flex"  # frozen weights
    scale = 1.01
    with pytest.raises(ModelError, match=r"attention: flex does not compute .*the numbers differ"):
        load_policy(str(folder), attention="flex")


def test_attention_is_sdpa_where_that_is_exact_and_otherwise_as_asked(folder: Path) -> None:
    assert load_policy(str(folder)).attention == "sdpa"
    assert load_policy(str(folder), attention="sdpa").attention == "sdpa"
    eager = load_policy(str(folder), attention="eager")
    assert eager.attention == eager.model.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="attention 'fast' is not one of auto, sdpa, eager, flash, flex"):
        load_policy(str(folder), attention="fast")


def test_noise_that_no_setting_switches_off_is_refused(folder: Path, monkeypatch) -> None:
    edit_json(folder / "config.json", attention_dropout=0.5)
    monkeypatch.setattr(load, "NOISES", ("jitter",))
    with pytest.raises(ModelError, match="draws random numbers in training mode"):
        load_policy(str(folder))


def test_loading_leaves_the_random_state_and_the_mode_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    assert not load_policy(str(folder), lora=Lora(rank=2, dropout=0.5)).model.training
    assert torch.equal(torch.get_rng_state(), state)


# --- LoRA ---------------------------------------------------------------------------------------


def with_trained_adapter(folder: Path, **lora: object) -> LoadedModel:
    """An adapter that is far from the zero it starts at."""
    loaded = load_policy(str(folder), lora=Lora(rank=4, alpha=8.0, **lora))
    generator = torch.Generator().manual_seed(0)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return loaded


def test_an_adapter_starts_at_the_base_model_and_is_all_that_trains(folder: Path) -> None:
    model = load_policy(str(folder), lora=Lora(rank=4, alpha=8.0)).model
    assert torch.equal(logits(model), logits(tiny_model()))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert context_length(model) == CONTEXT
    only_q = load_policy(str(folder), lora=Lora(rank=2, target_modules=("q_proj",))).model
    assert sum(parameter.requires_grad for parameter in only_q.parameters()) == 2 * 2


def test_an_adapter_is_drawn_from_its_seed_and_from_nothing_else(folder: Path) -> None:
    def first_weights(seed: int) -> torch.Tensor:
        model = load_policy(str(folder), lora=Lora(rank=4), seed=seed).model
        return next(p for n, p in model.named_parameters() if "lora_A" in n).detach()

    torch.manual_seed(7)
    state = torch.get_rng_state()
    one = first_weights(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(first_weights(1), one)
    assert not torch.equal(first_weights(2), one)


@pytest.mark.parametrize("modules", [("lm_head",), ("q_proj", "lm_head"), ("q_proj", "embed_tokens")])
def test_an_adapter_on_the_head_is_refused(folder: Path, modules: tuple[str, ...]) -> None:
    """The head is read as one matrix; in this model the embedding is that matrix too."""
    with pytest.raises(ModelError, match=r"lora.target_modules names .*output head.* Remove it"):
        load_policy(str(folder), lora=Lora(rank=2, target_modules=modules))


def test_adapter_mistakes(folder: Path, monkeypatch) -> None:
    with pytest.raises(ModelError, match=r"'nope'.* Linear layers of this model: down_proj, gate_proj"):
        load_policy(str(folder), lora=Lora(target_modules=("nope",)))
    with pytest.raises(ModelError, match=r"lora: .*positive"):
        load_policy(str(folder), lora=Lora.model_construct(rank=0))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'klent\[lora\]'"):
        load_policy(str(folder), lora=Lora(rank=4))


# --- save ---------------------------------------------------------------------------------------


def test_a_saved_model_is_a_plain_folder_with_the_same_weights(folder: Path, tmp_path: Path, capfd) -> None:
    loaded = load_policy(str(folder))
    with torch.no_grad():
        loaded.model.model.norm.weight.mul_(1.5)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "run" / "final")
    final = tmp_path / "run" / "final"
    assert [path.name for path in final.parent.iterdir()] == ["final"]
    reloaded = AutoModelForCausalLM.from_pretrained(final)
    assert torch.equal(logits(reloaded), logits(loaded.model))
    again = load_policy(str(final))
    assert again.stop_ids == loaded.stop_ids == (END, TURN_END)
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
    assert "lm_head.weight" not in load_file(final / "model.safetensors")  # tied, so written once
    modes = {path.stat().st_mode & 0o777 for path in final.iterdir()}
    assert modes == {final.stat().st_mode & 0o666}
    capfd.readouterr()
    save_model(tiny_model(seed=3), loaded.tokenizer, final)  # replaces it, and says nothing
    assert torch.equal(logits(load_policy(str(final)).model), logits(tiny_model(seed=3)))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_an_adapter_is_added_in_float32_and_rounded_once(folder: Path) -> None:
    from peft.tuners.lora import LoraLayer

    loaded = load_policy(str(folder), dtype="bfloat16", lora=Lora(rank=4))
    generator = torch.Generator().manual_seed(1)
    base = loaded.model.get_base_model()
    layers = {name: layer for name, layer in base.named_modules() if isinstance(layer, LoraLayer)}
    assert layers
    for layer in layers.values():
        factor = layer.lora_B["default"].weight
        factor.data = 0.01 * torch.randn(factor.shape, generator=generator).to(factor.dtype)
    merged = merged_weights(base)
    rounded_twice = 0
    for name, layer in layers.items():
        a, b = (side["default"].weight.detach().double() for side in (layer.lora_A, layer.lora_B))
        weight, delta = layer.base_layer.weight.detach(), layer.scaling["default"] * (b @ a)
        exact = (weight.double() + delta).to(torch.bfloat16)
        assert (merged[f"{name}.weight"] == exact).float().mean() > 0.99
        rounded_twice += int((weight + delta.to(torch.bfloat16) != exact).sum())
    assert rounded_twice > 10  # which is what rounding the delta by itself would cost


def test_an_adapter_is_merged_into_the_written_weights_only(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    loaded = with_trained_adapter(folder, dropout=0.1)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    save_model(loaded.model, loaded.tokenizer, tmp_path / "final")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    merged = load_policy(str(tmp_path / "final")).model
    assert set(merged.state_dict()) == set(tiny_model().state_dict())
    torch.testing.assert_close(logits(merged), logits(loaded.model), rtol=0, atol=1e-4)
    assert (logits(merged) - logits(tiny_model())).abs().max() > 1
    config = json.loads((tmp_path / "final" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])  # peft holds a set: by the hash seed
    assert len(config["target_modules"]) == 7 * 2
    reloaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "final" / "adapter")
    torch.testing.assert_close(logits(reloaded), logits(loaded.model), rtol=1e-5, atol=1e-5)


def test_a_generation_config_that_cannot_be_saved_is_found_before_training(
    folder: Path, tmp_path: Path
) -> None:
    edit_json(folder / "generation_config.json", temperature=0.5, do_sample=False)
    with pytest.raises(ValueError, match="temperature"):
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "resaved")
    loaded = load_policy(str(folder))
    assert loaded.stop_ids == (END, TURN_END)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "final")
    assert load_policy(str(tmp_path / "final")).stop_ids == (END, TURN_END)


def test_a_full_disk_leaves_the_model_that_was_there(folder: Path, tmp_path: Path, monkeypatch) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match=r"cannot write the model to .*tiny: .*No space left on device"):
        save_model(tiny_model(seed=1), tiny_tokenizer(), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_an_adapter_is_put_on_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(self: object) -> bool:
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=2)
        return False

    model = tiny_model()
    monkeypatch.setattr(type(model), "is_gradient_checkpointing", property(renamed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert add_adapter(model, Lora(rank=2), seed=0) is not None
