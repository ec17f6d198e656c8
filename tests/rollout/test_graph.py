"""The recorded step against step-by-step decoding, and what it asks of the host; on a CPU it runs as it is."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny import END, TURN_END, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MistralConfig, MistralForCausalLM

from klent.errors import DivergenceError
from klent.models.load import LoadedModel
from klent.rollout import graph, static
from klent.rollout.graph import GraphSampler
from klent.rollout.memory import Rows, bytes_per_row
from klent.rollout.recordable import graph_refusal
from klent.rollout.recorder import as_it_is
from klent.rollout.static import StaticCache, StaticDecoder
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt

TEXTS = ("1+1", "a much longer question than the others?", "2+3=", "x" * 90)
PROMPTS = [Prompt(f"p/{i}", [{"role": "user", "content": text}]) for i, text in enumerate(TEXTS)]
LONG = SamplingOptions(max_tokens=42)
OPTIONS = {
    "plain": LONG,
    "temperature": replace(LONG, temperature=0.7),
    "greedy": replace(LONG, temperature=0.0),
    "top_p": replace(LONG, top_p=0.8),
    "top_k": replace(LONG, top_k=7),
    "stop strings": replace(LONG, stop=("bc", *"aeiost12")),
}


def loaded(stops: tuple[int, ...] = (TURN_END, END)) -> LoadedModel:
    return LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", stops)


def said(engine: TransformersEngine, prompts: list[Prompt] = PROMPTS, seed: int = 3) -> list[Episode]:
    return engine.generate(prompts, group_size=5, seed=seed)


def assert_alike(ours: list[Episode], theirs: list[Episode]) -> None:
    assert [r.tokens.tolist() for r in ours] == [r.tokens.tolist() for r in theirs]
    assert [(r.finish, r.text) for r in ours] == [(r.finish, r.text) for r in theirs]
    for name in ("logp", "entropy", "renyi", "collision_logp"):
        pairs = [(getattr(x, name), getattr(y, name)) for x, y in zip(ours, theirs, strict=True)]
        assert max(float((x - y).abs().max()) for x, y in pairs) < 2e-5, name


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_numbers_give_the_same_tokens_as_step_by_step(name, monkeypatch):
    monkeypatch.setattr(static, "WINDOW", 8)  # so that windows grow: 8, 16, 32, 42
    stops = tuple(range(12)) if name == "plain" else (TURN_END, END)  # many rows end early: sizes shrink
    options = OPTIONS[name]
    recorded = TransformersEngine(loaded(stops), options, decoding="graph", note=pytest.fail)
    eager = said(TransformersEngine(loaded(stops), options))
    assert_alike(said(recorded), eager)
    keys = set(recorded.sampler.steps)
    assert len({window for _, window, *_ in keys}) > 2
    if name in ("plain", "stop strings"):
        assert len({rows for rows, *_ in keys}) > 2
        assert len({len(r.tokens) for r in eager}) > 5


def test_rooms_of_rows_are_kept():
    prompts = [replace(prompt, room=3 + 9 * i) for i, prompt in enumerate(PROMPTS)]
    recorded = TransformersEngine(loaded(()), LONG, decoding="graph", note=pytest.fail)
    ours = said(recorded, prompts)
    assert_alike(ours, said(TransformersEngine(loaded(()), LONG), prompts))
    assert [len(r.tokens) for r in ours] == [3 + 9 * (i // 5) for i in range(20)]


@pytest.fixture(scope="module")
def whole():
    options = replace(LONG, temperature=0.7, max_tokens=20)
    return options, [r.tokens.tolist() for r in said(TransformersEngine(loaded(), options, rows=64))]


@pytest.mark.parametrize(
    ("decoding", "rows"), [("eager", 5), ("eager", None), *(("graph", n) for n in (1, 10, None))]
)
def test_the_rows_at_once_do_not_change_what_is_said(whole, decoding, rows):
    options, expected = whole
    engine = TransformersEngine(loaded(), options, rows=rows, decoding=decoding)
    assert [r.tokens.tolist() for r in said(engine)] == expected


#: operations that wait for the device, or whose shapes depend on what it holds
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "item",
}


class _NoWaits(TorchDispatchMode):
    """Refuses what a recording would: a number that the host reads, a shape that depends on one, another device."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{func} waits for the device"
        indices = args[1] if name.startswith(("index", "_index_put")) and isinstance(args[1], list) else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), f"{func} by a mask waits"
        return func(*args, **(kwargs or {}))


class FakeRecorder:
    """Counts recordings and launches; what is launched must work on the memory that it was recorded with."""

    def __init__(self) -> None:
        self.recorded = self.launches = 0
        self.state: Callable[[], tuple[int, ...]] = tuple

    def __call__(self, step):
        self.recorded += 1
        addresses: list[tuple[int, ...]] = []

        def launch() -> None:
            self.launches += 1
            addresses.append(self.state())
            with _NoWaits() as mode:
                step()
            assert mode.operations > 50
            addresses.append(self.state())
            assert len(set(addresses)) == 1, "the step's memory has moved"

        return launch


def memory_of(sampler: GraphSampler, cache: StaticCache) -> tuple[int, ...]:
    tensors = [x for pair in (*cache.prompts, *cache.completions) for x in pair]
    tensors += [
        x for holder in (cache, sampler.notes) for x in vars(holder).values() if isinstance(x, torch.Tensor)
    ]
    return tuple(x.data_ptr() for x in tensors)


@pytest.fixture
def fake(monkeypatch):
    """An engine whose steps are recorded by a fake, and the looks of its host."""
    engine = TransformersEngine(loaded(tuple(range(20))), OPTIONS["temperature"], decoding="graph")
    said(engine)
    recorder, looks = FakeRecorder(), []
    engine.sampler.release()
    engine.sampler.record = recorder
    real = StaticDecoder.start

    def start(self):
        logits = real(self)
        recorder.state = lambda: memory_of(engine.sampler, self.cache)
        return logits

    def going(self, cache):
        looks.append(cache.rows)
        return usual(self, cache)

    usual = GraphSampler._going
    monkeypatch.setattr(StaticDecoder, "start", start)
    monkeypatch.setattr(GraphSampler, "_going", going)
    return engine, recorder, looks


def test_a_token_is_one_launch_and_the_host_looks_every_sixteenth(fake):
    engine, recorder, looks = fake
    longest = max(len(r.tokens) for r in said(engine))
    turns = -(-longest // graph.ASK)
    assert len(looks) == turns
    assert longest <= recorder.launches <= turns * graph.ASK
    assert recorder.recorded == len(engine.sampler.steps)
    assert looks == sorted(looks, reverse=True)
    assert looks[-1] < looks[0]


def test_the_next_call_records_nothing_and_reads_new_weights_and_prompts(fake):
    engine, recorder, _ = fake
    said(engine)
    before = recorder.recorded
    with torch.no_grad():
        engine.loaded.model.lm_head.weight.mul_(1.1)  # as an optimizer does: in place
    engine.options = replace(engine.options, temperature=0.9)  # as a thermostat does
    others = [
        replace(p, prompt=[{"role": "user", "content": t}]) for p, t in zip(PROMPTS, "wxyz", strict=True)
    ]
    others[0] = PROMPTS[3]  # the longest decides how prompts are padded
    eager = TransformersEngine(engine.loaded, engine.options, decoding="eager")
    rows = {key[0] for key in engine.sampler.steps}
    assert_alike(said(engine, others, seed=8), said(eager, others, seed=8))
    assert recorder.recorded - before == len([k for k in engine.sampler.steps if k[0] not in rows])


def test_a_step_that_asks_the_host_is_found_out(fake, monkeypatch):
    """The fake is worth something only if it refuses: here the step reads how many rows have ended."""
    engine, _, _ = fake
    usual = GraphSampler._advance

    def asking(self, decoder, how):
        assert int(self.notes.ended.sum()) >= 0
        usual(self, decoder, how)

    monkeypatch.setattr(GraphSampler, "_advance", asking)
    with pytest.raises(AssertionError, match="waits for the device"):
        said(engine)


def test_weights_that_have_diverged_are_refused():
    engine = TransformersEngine(loaded(()), SamplingOptions(max_tokens=4), decoding="graph")
    said(engine)
    with torch.no_grad():
        engine.loaded.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DivergenceError, match=r"the logits of \d+ of 20 rows are not finite"):
        said(engine)


def test_what_cannot_be_recorded_is_decoded_step_by_step_and_says_so():
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    window = MistralForCausalLM(MistralConfig(**small, **heads, sliding_window=8)).eval()
    assert graph_refusal(window, as_it_is) == "its attention has a window"
    assert graph_refusal(tiny_model(), as_it_is) is None
    notes: list[str] = []
    engine = TransformersEngine(
        LoadedModel(window, tiny_tokenizer(), "tiny", ()),
        SamplingOptions(max_tokens=4),
        decoding="graph",
        note=notes.append,
    )
    engine._prepare()
    assert engine.sampler is None
    (note,) = notes
    assert "step by step from Python (slower, as exact)" in note
    assert "its attention has a window" in note


def test_turns_that_keep_their_keys_are_decoded_step_by_step_and_say_so():
    notes: list[str] = []
    engine = TransformersEngine(loaded(), SamplingOptions(max_tokens=4), decoding="graph", note=notes.append)
    with engine.keeping():
        kept = said(engine)
    assert notes == ["rollout.decoding: turns reuse keys and values, and decode step by step from Python"]
    assert not engine.sampler.steps
    assert_alike(said(engine), kept)
    assert engine.sampler.steps


def test_an_attention_that_differs_is_refused(monkeypatch):
    """Here the step looks at places that are not written yet."""
    usual = StaticCache.fill

    def careless(self, *arguments):
        usual(self, *arguments)
        self.ahead.zero_()

    monkeypatch.setattr(StaticCache, "fill", careless)
    assert "more than scores and a softmax" in graph_refusal(tiny_model(), as_it_is)


def test_rows_that_do_not_fit_are_taken_in_halves(monkeypatch):
    notes: list[str] = []
    options = replace(LONG, max_tokens=6)
    engine = TransformersEngine(loaded(), options, note=notes.append)
    usual = TransformersEngine._decode

    def scarce(self, rows, *others):
        if len(rows) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(self, rows, *others)

    monkeypatch.setattr(TransformersEngine, "_decode", scarce)
    ours = said(engine)
    assert [note.split(", ")[1] for note in notes] == [
        "from now on 10 rows at once",
        "from now on 5 rows at once",
    ]
    monkeypatch.undo()
    assert_alike(ours, said(TransformersEngine(loaded(), options)))


def test_memory_of_a_row_covers_what_a_cache_takes(monkeypatch):
    model, longest, most, group = tiny_model(), 90, 70, 5
    with torch.no_grad():
        decoder = StaticDecoder(model, [[7] * longest] * 4, group_size=group, pad=0, room=most)
        logits = decoder.start()
    pairs = (*decoder.cache.prompts, *decoder.cache.completions)
    taken = sum(x.nbytes for pair in pairs for x in pair) + logits.nbytes
    counted = 20 * bytes_per_row(model, longest=longest, max_tokens=most, group_size=group)
    assert taken < counted < 12 * taken
    needed = bytes_per_row(model, longest=128, max_tokens=most, group_size=group)
    trained = 12 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr("klent.rollout.memory.free_bytes", lambda device: trained + int(2 * 100 * needed))
    assert Rows(None, pytest.fail).at_once(model, longest, most, group) == 64  # the power of two below 100
    assert Rows(48, pytest.fail).at_once(model, longest, most, group) == 48
