"""What a recipe's device and precision come to, on a machine that has no GPU; and runs of earlier versions."""

import json

import pytest
import torch
import yaml
from tiny import tiny_folder

from klent.config import Precision, dump_recipe, load_recipe
from klent.errors import ConfigError, ModelError
from klent.runs.device import computes_in, placement, says, viewing
from klent.runs.fingerprint import defaults_of, refuse_other_inputs, take_fingerprint
from klent.runs.train import train


@pytest.mark.parametrize(
    ("precision", "old_gpu", "new_gpu", "cpu"),
    [
        ({}, "float32", "bfloat16", "float32"),
        ({"compute": "bfloat16"}, "bfloat16", "bfloat16", "bfloat16"),
        ({"compute": "float32"}, "float32", "float32", "float32"),
        ({"weights": "bfloat16"}, "bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_auto_computes_in_bfloat16_where_a_gpu_multiplies_it(monkeypatch, precision, old_gpu, new_gpu, cpu):
    settings = Precision(**precision)
    assert computes_in(settings, torch.device("cpu")) == cpu
    for capability, expected in (((7, 5), old_gpu), ((9, 0), new_gpu)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=capability: it)
        assert computes_in(settings, torch.device("cuda", 1)) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_a_gpu_that_is_not_there_is_refused_and_a_run_of_one_can_be_looked_at_elsewhere():
    recipe = load_recipe("quickstart", ["device=cuda:3"])
    with pytest.raises(
        ModelError, match=r"device 'cuda:3' is not on this machine: .*Use device=auto .* or device=cpu"
    ):
        placement(recipe.device, recipe.precision)
    assert viewing(recipe.device, recipe.precision) == {"device": "cpu", "dtype": "float32"}


def test_float32_is_no_tf32():
    torch.set_float32_matmul_precision("high")
    placement("cpu", Precision())
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_plan_says_where_and_in_what():
    assert says("cpu", Precision()) == "device: cpu; float32 weights"
    expected = (
        "device: the GPU if there is one, else the CPU; float32 weights, computed with in bfloat16 on a GPU"
    )
    assert says("auto", Precision()) == expected
    assert (
        says("cpu", Precision(compute="bfloat16"))
        == "device: cpu; float32 weights, computed with in bfloat16"
    )


def test_a_run_of_a_version_with_dtype_is_read_and_goes_on(tmp_path, monkeypatch):
    """Its config.yaml says dtype, and so do the fingerprints of its checkpoints."""
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    lines = [{"prompt": f"{i}?", "completion": f"{i + 1}"} for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {"name": "old", "model": "model", "method": "sft", "task": {"data": "rows.jsonl"}, "steps": 2}
    recipe |= {"rollout": {"engine": "dataset"}, "eval": None, "prompts_per_step": 1, "group_size": 1}
    recipe["precision"] = {"weights": "bfloat16", "compute": "bfloat16"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    run = train(load_recipe("r.yaml"), tmp_path / "old", command="test")
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert values.pop("precision") == recipe["precision"]
    del values["device"]
    (run / "config.yaml").write_text(yaml.safe_dump({**values, "dtype": "bfloat16"}))
    again = load_recipe(run / "config.yaml")
    assert again.precision == Precision(**recipe["precision"])
    assert load_recipe(run / "config.yaml", ["steps=3"]).steps == 3
    now = take_fingerprint(again.model_dump(mode="json"))
    before = json.loads(json.dumps(now.state()))
    del before["recipe"]["precision"]
    then = {
        dtype: {**before, "recipe": {**before["recipe"], "dtype": dtype}} for dtype in ("bfloat16", "float32")
    }
    refuse_other_inputs(run, 1, then["bfloat16"], now, defaults_of(again))
    with pytest.raises(ConfigError, match=r"precision\.weights \(then float32, now bfloat16\)"):
        refuse_other_inputs(run, 1, then["float32"], now, defaults_of(again))
    assert "dtype" not in dump_recipe(again)
