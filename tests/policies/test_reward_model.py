"""A reward model's scores are those of transformers, however rows are laid out, and its gradient the formula's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONTEXT, END, PAD, TURN_END, tiny_folder
from transformers import AutoModelForSequenceClassification

from klent.config import Reward
from klent.errors import ModelError
from klent.models.load import LoadedModel, load_policy
from klent.models.save import save_model
from klent.policies.causal_lm.judge import RewardJudge, Text
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.policies.causal_lm.reward_model import RewardModel, require_scores
from klent.rollout.dataset_engine import DatasetEngine
from klent.runs.judges import LOADING, LocalJudge, ProcessJudge
from klent.streams.batch import Batch, make_batch
from klent.streams.prompt import Prompt
from klent.tasks.arguments import Sample
from klent.training.objective import Objective
from klent.training.reduction import Reduction
from klent.training.update import Updater

PAIRS = [
    Prompt("a", "2+2=", {"chosen": "4, of course", "rejected": "5"}),
    Prompt("b", [{"role": "user", "content": "Hi"}], {"chosen": "Hello!", "rejected": "Go away, please."}),
    Prompt("c", "x", {"chosen": "", "rejected": "y"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model's folder, its head not 0 and its scores moved by 0.25."""
    path = tmp_path_factory.mktemp("reward_model")
    loaded = load_policy(str(tiny_folder(path / "language_model")), scores=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        loaded.model.score.weight.copy_(torch.randn(1, 32, generator=generator))
    RewardModel(loaded.model).centre(-0.25)
    save_model(loaded.model, loaded.tokenizer, path / "model")
    return path / "model"


def load(folder: Path) -> LoadedModel:
    return load_policy(str(folder), scores=True)


def replayed(loaded: LoadedModel) -> Batch:
    engine = DatasetEngine(loaded, max_tokens=64, columns=("chosen", "rejected"))
    return make_batch(engine.generate(PAIRS, group_size=2, seed=0), None, group_size=2, whole_groups=True)


def of_transformers(folder: Path, batch: Batch) -> torch.Tensor:
    """The scores that transformers gives to the same texts, padded on the right."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = [torch.tensor([*e.prompt_ids, *e.tokens.tolist()]) for e in batch.episodes]
    padding = model.config.pad_token_id
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[:, 0]


@pytest.mark.parametrize("layout", ["apart", "shared", "blocks", "two micro-batches"])
def test_scores_are_those_of_transformers_whatever_the_layout(folder: Path, layout: str) -> None:
    loaded = load(folder)
    model, batch = RewardModel(loaded.model), replayed(loaded)
    require_scores(model)
    model.packing = Packing(layout != "apart", 20 if layout == "two micro-batches" else 4096)
    if layout == "blocks":
        assert takes_shared_prompt(model, longest=CONTEXT)
        assert model.takes_blocks
    expected = of_transformers(folder, batch) + 0.25
    assert expected.std() > 0.1
    assert torch.allclose(model.scores(batch), expected, atol=1e-5)
    assert len(model.microbatches(batch, range(6))) == (3 if layout == "two micro-batches" else 1)


def test_a_folder_whose_padding_ends_texts_is_read_in_front_of_it_as_transformers_does(folder: Path) -> None:
    loaded = load(folder)
    loaded.model.config.pad_token_id = TURN_END
    loaded.tokenizer.pad_token = "<|im_end|>"
    other = folder.parent / "padded"
    save_model(loaded.model, loaded.tokenizer, other)
    again = load(other)
    model, batch = RewardModel(again.model), replayed(again)
    assert model.padding == TURN_END
    assert torch.allclose(model.scores(batch), of_transformers(other, batch) + 0.25, atol=1e-5)


def test_a_language_model_gets_a_padding_token_that_ends_no_text(tmp_path: Path) -> None:
    tiny_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": TURN_END}))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<|im_end|>"}))
    loaded = load(tmp_path)
    assert loaded.model.config.pad_token_id not in (TURN_END, END)
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id
    assert not loaded.pretrained_head
    assert not loaded.model.score.weight.any()


def test_an_update_follows_the_gradient_of_bradley_terry(folder: Path) -> None:
    loaded = load(folder)
    model, batch = RewardModel(loaded.model, packing=Packing(True)), replayed(loaded)
    objective = Objective({"bradley_terry": {"margin": 0.5}}, None, None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = Updater(model, optimizer, objective, learning_rate=lambda n: 0.0, reduction=Reduction("pairs"))
    result = step.run(batch, seed=0)
    assert result.before is None
    assert result.sums["preference/accuracy"][1] == 3

    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = torch.stack(
        [
            plain(input_ids=torch.tensor([[*e.prompt_ids, *e.tokens.tolist()]])).logits[0, 0]
            for e in batch.episodes
        ]
    )
    loss = -torch.nn.functional.logsigmoid(scores[::2] - scores[1::2] - 0.5).mean()
    loss.backward()
    assert result.loss == pytest.approx(float(loss), abs=1e-5)
    expected = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in model.model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


def test_a_margin_of_the_data_is_added_to_that_of_the_loss(folder: Path) -> None:
    loaded = load(folder)
    objective = Objective({"bradley_terry": {"margin": 0.5}}, None, None)
    engine = DatasetEngine(loaded, max_tokens=64, columns=("chosen", "rejected"), margins=True)
    prompts = [
        replace(p, columns={**p.columns, "margin": m}) for p, m in zip(PAIRS, (1, 0.0, None), strict=True)
    ]
    batch = make_batch(engine.generate(prompts, group_size=2, seed=0), None, group_size=2, whole_groups=True)
    score = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 2.0])
    loss = objective.token_loss(batch.streams.with_(score=score)).loss.sum()
    margins = torch.tensor([1.5, 0.5, 0.5])
    expected = -torch.nn.functional.logsigmoid(score[::2] - score[1::2] - margins).sum()
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize("margin", [-1.0, float("nan"), float("inf"), "big", True])
def test_a_margin_that_is_no_number_from_0_on_is_refused(folder: Path, margin: object) -> None:
    engine = DatasetEngine(load(folder), max_tokens=64, columns=("chosen", "rejected"), margins=True)
    with pytest.raises(ValueError, match=r"a: `margin` must be a number from 0 on"):
        engine.check(replace(PAIRS[0], columns={**PAIRS[0].columns, "margin": margin}))


def changed(folder: Path, to: Path, **config: object) -> Path:
    """A copy of a model's folder with other keys in config.json."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    written = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**written, **config}))
    return to


def test_two_labels_are_refused(folder: Path, tmp_path: Path) -> None:
    labels = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    with pytest.raises(ModelError, match="a classifier with 2 labels, and a reward model gives one number"):
        load(changed(folder, tmp_path / "two", **labels))


def test_a_folder_without_its_head_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    headless = changed(folder, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "score.weight"},
        headless / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, such as score\.weight"):
        load(headless)


@pytest.mark.parametrize("name", ["score.weight", "model.norm.weight"])
def test_weights_that_are_not_finite_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    broken = changed(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        load(broken)


def test_neither_a_reward_model_nor_a_language_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a reward model"):
        load(changed(folder, tmp_path / "tagger", architectures=["LlamaForTokenClassification"]))


def samples(batch: Batch) -> list[Sample]:
    """The answers of a batch as a rollout hands them to rewards."""
    return [Sample(e.prompt, e.text, "stop", e.tokens.tolist()) for e in batch.episodes]


def test_as_a_reward_it_gives_the_scores_of_training_from_tokens_and_from_text(folder: Path) -> None:
    loaded = load(folder)
    batch = replayed(loaded)
    expected = RewardModel(loaded.model).scores(batch)
    assert float((expected - of_transformers(folder, batch)).mean()) == pytest.approx(0.25, abs=1e-5)
    judge = RewardJudge.load(str(folder), sampler=str(folder.parent / "language_model"), device="cpu")
    assert judge.reads_ids
    texts = [Text(s.prompt, s.completion, True, s.ids) for s in samples(batch)]
    for given in (texts, [replace(text, ids=None) for text in texts]):
        found = judge.score(given)
        assert [why for _, why in found] == [""] * 6
        assert torch.allclose(torch.tensor([value for value, _ in found]), expected, atol=1e-5)


def test_text_that_was_cut_is_scored_without_the_token_that_ends_one(folder: Path) -> None:
    judge = RewardJudge.load(str(folder), device="cpu")
    assert not judge.reads_ids
    text = Text(PAIRS[0], "4", True, None)
    (ended, _), (cut, _) = judge.score([text, replace(text, ended=False)])
    assert abs(ended - cut) > 1e-3


def test_what_cannot_be_scored_has_a_reason_and_costs_the_others_nothing(folder: Path) -> None:
    judge = RewardJudge.load(str(folder), device="cpu")
    good, long = Text(PAIRS[0], "4", True, None), Text(PAIRS[0], "4" * CONTEXT, True, None)
    ((alone, _),) = judge.score([good])
    (value, _), (nothing, why) = judge.score([good, long])
    assert value == pytest.approx(alone, abs=1e-6)
    assert nothing != nothing
    assert "reads at most 512 tokens" in why
    with torch.no_grad():
        judge.model.model.score.weight.fill_(float("nan"))
    assert judge.score([good])[0][1] == "gave nan and no score"


def test_another_tokenizer_is_told_and_reads_texts(folder: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    judge = LocalJudge(str(folder), lambda: RewardJudge.load(str(folder), sampler=str(other), device="cpu"))
    tried = judge.begin()
    assert tried.doubt
    assert "another tokenizer than the policy" in tried.text
    batch = replayed(load(folder))
    expected = RewardModel(load(folder).model).scores(batch)
    foreign = [sample._replace(ids=[PAD] * 3) for sample in samples(batch)]
    assert torch.allclose(torch.tensor([value for value, _ in judge.score(foreign)]), expected, atol=1e-5)


def test_a_reward_model_is_no_language_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a reward model: it scores texts and writes none"):
        load_policy(str(folder))


def test_a_language_model_is_no_reward_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a language model, not a reward model"):
        RewardJudge.load(str(folder.parent / "language_model"))


def test_its_time_limit_is_for_each_text_once_it_was_loaded(folder: Path, monkeypatch: Any) -> None:
    batch = replayed(load(folder))
    given = samples(batch)
    reward = Reward(fn=f"reward_model:{folder}", process=True, timeout=0.5)
    judge = ProcessJudge(reward, str(folder), {}, None)
    limits: list[float] = []

    def call(arguments: dict[str, list[object]], limit: float) -> object:
        limits.append(limit)
        return {"verdicts": [[0.0, ""]] * len(arguments["texts"]), "reads_ids": True}

    monkeypatch.setattr(judge.worker, "call", call)
    judge.begin()
    judge.score(given)
    assert limits == [LOADING, 0.5 * len(given)]
    judge.loaded = False
    judge.score(given)
    assert limits[-1] == LOADING + 0.5 * len(given)


def test_in_a_process_of_its_own_it_gives_the_same_scores(folder: Path) -> None:
    batch = replayed(load(folder))
    reward = Reward(fn=f"reward_model:{folder}", process=True)
    judge = ProcessJudge(reward, str(folder), {"sampler": str(folder), "device": "cpu"}, None)
    try:
        assert not judge.begin().doubt
        found = torch.tensor([value for value, _ in judge.score(samples(batch))])
    finally:
        judge.close()
    assert torch.allclose(found, RewardModel(load(folder).model).scores(batch), atol=1e-5)
