"""examples/: the single-file loop, by hand and that it learns; and the tables of docs/ made of its results."""

import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import tiny_folder

from klent.config import make_recipe
from klent.runs.console import QuietConsole
from klent.runs.train import train

EXAMPLES = Path(__file__).parents[1] / "examples"
LOOP = EXAMPLES / "reinforce_loop.py"


def load(file: Path, name: str | None = None) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name or file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name or file.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loop() -> types.ModuleType:
    return load(LOOP)


def ids(loop: types.ModuleType, *texts: str) -> torch.Tensor:
    return torch.tensor([[loop.VOCABULARY.index(character) for character in text] for text in texts])


def test_only_the_right_digit_and_then_stop_is_rewarded(loop: types.ModuleType) -> None:
    prompts = ids(loop, "7+5=", "7+5=", "7+5=", "7+5=", "0+0=")
    completions = ids(loop, "2.9", "22.", "12.", "3..", "0..")
    assert loop.verify(prompts, completions).tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]


def test_the_mask_ends_with_the_stop_token(loop: types.ModuleType) -> None:
    """A model that writes 2, then stop, then anything: the tokens after the stop are not its answer."""
    script = iter(ids(loop, "2..")[0].tolist())

    def model(text: torch.Tensor) -> types.SimpleNamespace:
        logits = torch.full((*text.shape, len(loop.VOCABULARY)), -1e9)
        logits[..., next(script)] = 0.0
        return types.SimpleNamespace(logits=logits)

    tokens, mask = loop.sample(model, ids(loop, "7+5="))
    assert torch.equal(tokens, ids(loop, "2.."))
    assert mask.tolist() == [[True, True, False]]


def test_the_loop_learns(loop: types.ModuleType) -> None:
    """Guessing gets 1 / 13**2 = 0.006; always stopping after one digit gets 0.1; more needs the sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        history = loop.main(steps=60, seed=1)
    finally:
        torch.set_num_threads(threads)
    first, last = history[:5], history[-5:]
    assert mean(row["reward"] for row in first) < 0.05
    assert mean(row["reward"] for row in last) > 0.2
    assert mean(row["entropy"] for row in first) > 2.0
    assert mean(row["entropy"] for row in last) < 1.2


def test_the_command(loop: types.ModuleType) -> None:
    run = subprocess.run(
        [sys.executable, LOOP, "--steps", "1"], capture_output=True, text=True, check=True, timeout=120
    )
    assert re.fullmatch(
        r"step +1  reward 0\.\d{3}  entropy 2\.\d{3} nats  \d\+\d=[0-9+=.]{1,3}\n", run.stdout
    )


def test_the_parts_without_the_loop_do_what_the_loop_does(tmp_path: Path, monkeypatch) -> None:
    """The same numbers to the last bit: rewards, entropies and gradient norms of every step."""
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    parts = load(EXAMPLES / "grpo_from_parts.py")
    settings = parts.Settings(model="model", steps=3, prompts=4, group=6, max_tokens=6, peak=1e-2, heldout=4)
    rows = parts.main(settings)
    recipe = make_recipe(
        {
            "name": "loop",
            "model": "model",
            "method": "grpo",
            "task": parts.SUMS.model_dump(exclude_none=True),
            "reward": "last_number",
            "steps": 3,
            "prompts_per_step": 4,
            "group_size": 6,
            "rollout": {"max_tokens": 6},
            "optimizer": {"lr": 1e-2, "schedule": "linear"},
            "eval": {"problems": 4, "samples": 2},
        }
    )
    console = QuietConsole()
    train(recipe, tmp_path / "run", command="test", console=console)
    for number, (row, expected) in enumerate(zip(rows, console.rows, strict=True)):
        assert row["reward/mean"] == expected["reward/mean"], number
        assert row["policy/entropy"] == expected["policy/entropy"], number
        assert row["grad/norm"] == expected["grad/norm"], number


def test_the_parts_fit_on_four_pages() -> None:
    assert len((EXAMPLES / "grpo_from_parts.py").read_text().splitlines()) <= 200


@pytest.fixture(scope="module")
def tables() -> types.ModuleType:
    return load(EXAMPLES / "tables.py")


@pytest.mark.parametrize(
    "page",
    [
        *("unsupervised.md", "entropy.md", "mixture.md", "sequences.md", "../examples/small_model/README.md"),
        *("price.md", "diffusion.md", "robot.md", "offline.md", "engines.md"),
    ],
)
def test_the_tables_of_results_are_those_of_the_committed_files(tables: types.ModuleType, page: str) -> None:
    written = (tables.DOCS / page).read_text(encoding="utf-8")
    assert tables.filled(page) == written, "run python examples/tables.py"


# the diary, and a list of others' statements by number of section
EXEMPT = {"log.md", "sources.md", "from-trl.md"}  # of the last the figures are settings
FIGURE = re.compile(r"\d\.\d|\d ?%|±|\d (ms|s|times)\b")


def typed_by_hand(text: str) -> list[str]:
    """Rows with a measured figure, outside of code and links, in tables that no program writes."""
    if "<!-- Generated by" in text[:500]:
        return []
    rest = re.sub(r"<!-- table: .*? -->.*?<!-- end -->|^```.*?^```", "", text, flags=re.M | re.S)
    rows = [line for line in rest.split("\n") if line.startswith("|")]
    return [row for row in rows if FIGURE.search(re.sub(r"`[^`]*`|\]\([^)]*\)", "", row))]


def test_no_table_of_figures_is_typed_by_hand() -> None:
    pages = [*(EXAMPLES.parent / "docs").glob("*.md"), *EXAMPLES.glob("*/README.md")]
    assert len(pages) > 10
    found = {page.name: typed_by_hand(page.read_text(encoding="utf-8")) for page in pages}
    assert not {name: rows for name, rows in found.items() if rows and name not in EXEMPT}
    written = "<!-- table: a -->\n| a | 0.5 |\n<!-- end -->\n| `x: 0.5` | [b](c0.5) |\n"
    assert typed_by_hand(f"{written}| c | 0.51 |\n| d | 3 times |\n| e | 5 % |\n") == [
        "| c | 0.51 |",
        "| d | 3 times |",
        "| e | 5 % |",
    ]


def test_the_theory_stands_on_the_ledger(tables: types.ModuleType, tmp_path: Path, monkeypatch) -> None:
    """Another figure or verdict in docs/claims.md is another one in the table; a figure it lacks is refused."""
    theory = sys.modules[tables.theory_table.__module__]
    ledger = theory.CLAIMS.read_text(encoding="utf-8")
    edited = ledger.replace("Chernoff | 71.9 [51.7, 100] |", "Chernoff | 123 [45.0, 678] |")
    monkeypatch.setattr(theory, "CLAIMS", tmp_path / "claims.md")
    for text, error in (
        (edited, ""),
        (edited.replace("| SNR with Φ₁", "| SNR of Φ₁"), "no figure 'SNR with"),
    ):
        theory.CLAIMS.write_text(text, encoding="utf-8")
        theory.claim.cache_clear()
        if error:
            with pytest.raises(KeyError, match=error):
                theory.theory_table()
        else:
            assert "123 [45.0, 678] where the policy is right once in 1000" in theory.theory_table()
    theory.claim.cache_clear()


def test_the_readmes_timings_are_those_of_the_benchmarks() -> None:
    """Each number of its table, rounded as it is there, is a committed one."""
    bench = load(EXAMPLES.parent / "benchmarks" / "table.py", "benchmarks_table")
    rows = [*bench.head(), *bench.train_pass(), *bench.decode(), *bench.step()]
    known = {
        key: [float(row[key].split()[0].rstrip("x")) for row in rows] for key in ("klent", "peer", "faster")
    }
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    table = text.partition("| the same work, 2 CPU cores |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == 8
    for row in table:
        ours, theirs, ratios = (cell.strip() for cell in row.strip("|").split("|")[1:])
        for key, cell, unit in (
            ("klent", ours, " (?:s|GB)"),
            ("peer", theirs, " (?:s|GB)"),
            ("faster", ratios, "x"),
        ):
            found = re.findall(rf"(\d+\.(\d+)){unit}", cell)
            assert found, row
            for number, decimals in found:
                assert any(abs(float(number) - v) <= 0.5001 * 10.0 ** -len(decimals) for v in known[key]), (
                    row,
                    number,
                )


@pytest.fixture
def entropy_seeds(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    folder = EXAMPLES.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return load(folder / "entropy_seeds.py")


def test_the_log_compares_trls_entropy_as_the_committed_runs_do(entropy_seeds: types.ModuleType) -> None:
    log = (EXAMPLES.parent / "docs" / "log.md").read_text(encoding="utf-8")
    lines = [line for line in entropy_seeds.summary(entropy_seeds.RESULTS) if line]
    assert len(lines) > 8
    assert [line for line in lines if line not in log] == []


def test_two_trainers_are_compared_by_welchs_interval(entropy_seeds: types.ModuleType) -> None:
    ours, theirs = [1.0, 2.0, 4.0], [2.0, 4.0, 7.0, 8.0]
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert entropy_seeds.welch(ours, theirs) == pytest.approx((-35 / 12, *expected))


def test_a_replay_compares_gradients_and_weights(entropy_seeds: types.ModuleType, tmp_path: Path) -> None:
    """A gradient 1 % off, and a step in which klent had none; weights as shares of the way gone."""
    workers = sys.modules["entropy_workers"]
    one = torch.ones(4)
    for step, gradient in ((1, {"w": 3 * one}), (2, {})):
        torch.save({"gradient": gradient}, tmp_path / f"step_{step}.pt")
        torch.save({"w": 2 * one}, tmp_path / f"weights_{step}.pt")
    torch.save({"w": one}, tmp_path / "weights_0.pt")
    found = workers.compared(tmp_path, 1, {"w": 3.03 * one}, {"w": 2.2 * one})
    assert found == pytest.approx(
        {"gradient_norm": 6, "gradient_gap": 0.01, "way": 2, "weights_gap": 0.2}, rel=1e-5
    )
    assert workers.compared(tmp_path, 2, {"w": 0 * one}, {"w": 2 * one})["gradient_gap"] == 0.0
    with pytest.raises(SystemExit, match="not train the same parameters"):
        workers.compared(tmp_path, 1, {"other": one}, {"w": one})


def test_surprise_is_summed_over_the_mask(entropy_seeds: types.ModuleType) -> None:
    """Excesses of 0.5 and -0.25 nats; the padding does not count."""
    workers = sys.modules["entropy_workers"]
    logp, entropy = torch.tensor([[-1.5, -0.75, 0.0]]), torch.tensor([[1.0, 1.0, 9.0]])
    found = workers.surprise(logp, entropy, torch.tensor([[True, True, False]]))
    assert found == pytest.approx({"surprise": 0.25, "surprise_squares": 0.3125, "tokens": 2})


def test_verdicts_and_resolution_by_hand(tables: types.ModuleType) -> None:
    """Nine arms under three seeds: 16 degrees of freedom, by a two-way analysis without klent's code."""
    runs = tables.plain(tables.NINE_ARMS)
    arms = list(dict.fromkeys(row["arm"] for row in runs))
    means = np.array([[float(row["pass@1"]) for row in runs if row["arm"] == arm] for arm in arms])
    residual = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
    df = (9 - 1) * (3 - 1)
    error = np.sqrt(2 * (residual**2).sum() / df / 3)
    t = {0.05: 2.1199, 0.05 / 8: 3.1458, 0.4: 0.8647}  # two-sided, 16 degrees of freedom
    table = tables.resolution(tables.NINE_ARMS, "grpo")
    assert f"{df} degrees of freedom" in table
    found = [float(number) for number in re.findall(r"\d\.\d{3}", table)]
    assert found == pytest.approx(
        [t[0.05] * error, t[0.05 / 8] * error, (t[0.05 / 8] + t[0.4]) * error], abs=6e-4
    )
    hold = means[arms.index("hold")].mean() - means[arms.index("grpo")].mean()
    against = next(
        line for line in tables.comparison(tables.NINE_ARMS, "grpo").splitlines() if "`hold`" in line
    )
    assert f"{hold:+.3f} ({hold - found[0]:+.3f} to" in against


def test_margins_over_seeds_by_hand(tables: types.ModuleType) -> None:
    """EM after RL on SmolLM2, greedily: 0, 0 and -8/48, so nothing that three seeds can detect."""
    lines = tables.differences_table(tables.controls("em_products"), 0.5).splitlines()
    row = next(line for line in lines if line.startswith("| RL, then this - RL | greedy"))
    mean, margin = -8 / 48 / 3, 4.3027 * (8 / 48) / 3  # standard deviation over the root of 3
    assert row.split("|")[3:5] == [" +0.000, +0.000, -0.167 ", f" {mean:+.3f} "]
    assert row.split("|")[6].strip() == f"{margin:.3f}"
    free = next(line for line in lines if "best vote" in line)
    gain, over_problems = (float(free.split("|")[place]) for place in (4, 5))
    assert gain < over_problems, "a gain over the best vote that 48 problems do not show"


@pytest.fixture(scope="module")
def square() -> types.ModuleType:
    return load(EXAMPLES / "distill_square" / "square.py")


def test_the_worlds_of_the_square_are_what_they_say(square: types.ModuleType) -> None:
    world = square.make_world(3)
    chance = square.sequence_logp(world.teacher).exp()
    assert torch.allclose(chance.sum(1), torch.ones(3, dtype=chance.dtype))
    right = chance.gather(1, world.right)
    assert (right.sum(1) - 0.7).abs().max() < 0.05  # and what the noise puts there
    assert (right > 0.0875).all()
    prefixes = {
        (t, tuple(sequence[:t].tolist())): int(states[t])
        for sequence, states in zip(square.SEQUENCES, square.STATES, strict=True)
        for t in range(square.LENGTH)
    }
    seen = {(t, prefix[-1:]): int(square.SEEN[state]) for (t, prefix), state in prefixes.items()}
    assert sorted(set(seen.values())) == list(range(13))
    assert all(int(square.SEEN[state]) == seen[t, prefix[-1:]] for (t, prefix), state in prefixes.items())


def test_the_teacher_of_the_square_is_unsure_where_no_right_answer_goes_on(square: types.ModuleType) -> None:
    world = square.make_world(20)
    logp = world.teacher.log_softmax(-1)
    unsure = -(logp.exp() * logp).sum(-1) > square.UNSURE
    right = torch.zeros_like(unsure)
    for row, answers in zip(right, world.right, strict=True):
        row[square.STATES[answers].flatten()] = True
    assert float(unsure[~right].float().mean()) > 0.95
    assert 0.28 < float(unsure[right].float().mean()) < 0.38


def test_cells_of_the_square_follow_their_divergence(square: types.ModuleType) -> None:
    world = square.make_world(2)
    before = square.measures(world, world.student[:, square.SEEN])
    for kind, key in (("reverse", "kl_student_teacher"), ("forward", "kl_teacher_student")):
        loss = square.ROWS[kind][1]
        after = square.measures(world, square.train(world, 1.0 if kind == "reverse" else 0.0, loss, 25))
        assert (after[key] < 0.9 * before[key]).all(), kind
        assert (after["right"] > before["right"]).all(), kind
        assert ((after["found"] > 0) & (after["found"] < 1)).all()


def test_sampled_losses_have_the_mean_gradient_of_the_reverse_divergence(square: types.ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, square.SYMBOLS, generator=generator, dtype=torch.float64)
    every = torch.arange(square.SYMBOLS)
    found = []
    for name in ("reverse", "sampled, exact baseline", "sampled, no baseline"):
        rows = student.repeat(square.SYMBOLS, 1).requires_grad_()
        each = square.ROWS[name][1](rows, teacher.repeat(square.SYMBOLS, 1), every)
        found.append(torch.autograd.grad((student.softmax(-1)[0] * each).sum(), rows)[0].sum(0))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
