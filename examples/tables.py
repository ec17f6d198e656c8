"""Writes the tables of docs/ and examples/ that stand on committed files: results, timings, claims.

    python examples/tables.py

Each table is between `<!-- table: NAME -->` and `<!-- end -->`, and made of a committed file.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np

from klent.audit.table import replace_table
from klent.io.files import write_atomic
from klent.kit.student import t_bound
from klent.studies.compare.statistics import LEVEL, contrasts
from klent.studies.controls import Rows, read_csv

HERE = Path(__file__).resolve().parent
sys.path[:0] = [
    str(HERE / folder)
    for folder in (
        ".",
        "unsupervised",
        "mixture_world",
        "small_model",
        "diffusion",
        "robot",
        "ppo_details",
        "games",
    )
]
sys.path.append(str(HERE.parent / "benchmarks"))

import arms_table as logged_games  # noqa: E402
import details  # noqa: E402
import drawer  # noqa: E402
import figure  # noqa: E402
import forgetting_table as forgetting  # noqa: E402
import overoptimise  # noqa: E402
from curves import table as worlds_table  # noqa: E402
from front import SETTINGS as FRONTS  # noqa: E402
from front import arms_of, at_equal_coefficient, at_equal_kl, read  # noqa: E402
from mixture_tables import (  # noqa: E402
    before_training,
    solver_table,
    square_differences,
    square_table,
    theory_table,
    two_models_table,
    writers_table,
)
from stitching import committed, summary  # noqa: E402
from table import arms_table, baselines_table, differences_table, markdown, spread, steps_table  # noqa: E402
from texts import NOTATIONS, SLIP  # noqa: E402
from wrong_gradient import read as read_wrong  # noqa: E402
from wrong_gradient import table as wrong_table  # noqa: E402

DOCS = HERE.parent / "docs"
TIMINGS = HERE.parent / "benchmarks" / "results"
RESULTS = HERE / "unsupervised" / "results"
NINE_ARMS = HERE / "small_model" / "compare.csv"
SQUARE = HERE / "distill_square" / "results" / "square.csv"
MIXTURES = HERE / "small_model" / "mixture" / "compare.csv"


def controls(name: str) -> Rows:
    """A committed output of `klent controls`."""
    return read_csv(RESULTS / f"{name}.csv")


def plain(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text."""
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def comparison(file: Path, first: str) -> str:
    """The runs of `klent compare`: every arm, best pass@1 first, against one of them."""
    arms: dict[str, list[dict[str, str]]] = {}
    for row in plain(file):
        arms.setdefault(row["arm"], []).append(row)
    heads = ["arm", "pass@1", f"against `{first}`", "pass@8", f"against `{first}`", "entropy", "KL to base"]
    against = {key: against_first(arms, first, key) for key in ("pass@1", "pass@8")}
    body = []
    for arm in sorted(arms, key=lambda name: -numbers(arms[name], "pass@1").mean()):
        cells = [f"`{arm}`"]
        for key, verdicts in against.items():
            cells += [spread(numbers(arms[arm], key).tolist()), verdicts.get(arm, "")]
        cells += [
            f"{numbers(arms[arm], 'entropy').mean():.3f}",
            spread(numbers(arms[arm], "kl_base").tolist()),
        ]
        body.append(cells)
    return markdown(heads, body)


def numbers(rows: list[dict[str, str]], key: str) -> np.ndarray:
    """One column."""
    return np.array([float(row[key]) for row in rows])


def scores(arms: dict[str, list[dict[str, str]]], first: str, key: str) -> dict[str, dict[int, np.ndarray]]:
    """What `contrasts` takes, the first arm first; of each run the mean over its problems."""
    ordered = [first, *(arm for arm in arms if arm != first)]
    return {arm: {int(row["seed"]): np.array([float(row[key])]) for row in arms[arm]} for arm in ordered}


def against_first(arms: dict[str, list[dict[str, str]]], first: str, key: str) -> dict[str, str]:
    """Arm -> difference, 95% interval over seeds, verdict after Holm's correction."""
    return {
        item.arm: f"{item.difference:+.3f} ({item.low:+.3f} to {item.high:+.3f}), {item.verdict}"
        for item in contrasts(scores(arms, first, key))
    }


def resolution(file: Path, first: str) -> str:
    """How large a difference in pass@1 had to be to be found, and to be found four times in five."""
    arms: dict[str, list[dict[str, str]]] = {}
    for row in plain(file):
        arms.setdefault(row["arm"], []).append(row)
    items = contrasts(scores(arms, first, "pass@1"))
    pooled = [item for item in items if not item.own]  # the others are judged by their own noise
    df = pooled[0].df
    error = fmean((item.high - item.low) / 2 / t_bound(LEVEL, df) for item in pooled)
    least = t_bound(LEVEL / len(items), df)
    often = least + t_bound(0.4, df)  # Student's t is above its 0.2 quantile four times in five
    rows = [
        ["half the 95% interval of one arm", f"{t_bound(LEVEL, df) * error:.3f}"],
        [f"least that counts among {len(items)} arms (Holm's first step)", f"{least * error:.3f}"],
        ["found four times in five", f"{often * error:.3f}"],
    ]
    return markdown([f"difference in pass@1, {df} degrees of freedom", ""], rows)


def cost_table(rows: list[dict[str, str]]) -> str:
    """A step with each term, beside the one with a KL per token."""
    body = [
        [f"`{r['terms']}`", f"{r['seconds']} s", f"{r['train']} s", f"{float(r['over_kl_in_loss']):.2f}"]
        for r in rows
    ]
    return markdown(["term", "step", "of which the update", "step over `kl_in_loss`"], body)


def front_by_coefficient(setting: str) -> str:
    """Reward, KL and what both add up to, of every term and coefficient."""
    head = [
        "coef",
        "term",
        "reward",
        "KL per completion, nats",
        "total",
        "total, `sequence_kl` less this one",
    ]
    return markdown(head, at_equal_coefficient(read(FRONTS[setting].file)))


def front_by_kl(setting: str) -> str:
    """Reward of every term at the same KL."""
    rows = read(FRONTS[setting].file)
    arms = arms_of(rows)
    rewards = [f"reward, `{arm}`" for arm in arms]
    apart = [f"`{arms[0]}` less `{arm}`" for arm in arms[1:]]
    return markdown(["KL per completion, nats", *rewards, *apart], at_equal_kl(rows))


def apart_table(rows: list[dict[str, str]]) -> str:
    """Simulated tokens per second of devices apart, over those of devices that take turns, by staleness."""
    stale = sorted({row["staleness"] for row in rows})
    lines = ["| 8 GPUs | staleness " + " | ".join(stale) + " |", "|---" * (len(stale) + 1) + "|"]
    for how in dict.fromkeys(row["how"] for row in rows if row["how"] != "in turns"):
        over = {row["staleness"]: f"{float(row['to_turns']):.2f}" for row in rows if row["how"] == how}
        lines.append(f"| {how} | " + " | ".join(over[k] for k in stale) + " |")
    return "\n".join(lines)


def price(study: str, shown: str) -> str:
    """A table of a study of learnt rewards."""
    return overoptimise.tables(overoptimise.STUDIES[study])[shown]


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "unsupervised.md": {
        "before training": lambda: baselines_table(
            {
                "`products`, 12": controls("empo_products"),
                "`products`, 32": controls("em_products"),
                "`chain_sum`, 12": controls("empo_chain"),
            }
        ),
        "em_products": lambda: arms_table(controls("em_products")),
        "em_products, differences": lambda: differences_table(controls("em_products"), 0.5),
        "em_chain_steps": lambda: steps_table(plain(RESULTS / "em_chain_steps.csv")),
        "small_em": lambda: arms_table(controls("small_em")),
        "small_em, differences": lambda: differences_table(controls("small_em"), 0.5),
        "empo_products": lambda: arms_table(controls("empo_products")),
        "empo_chain": lambda: arms_table(controls("empo_chain")),
        "empo_cool": lambda: arms_table(controls("empo_cool")),
        "small_empo": lambda: arms_table(controls("small_empo")),
    },
    "entropy.md": {
        "nine arms": lambda: comparison(NINE_ARMS, "grpo"),
        "resolution": lambda: resolution(NINE_ARMS, "grpo"),
        "before training": lambda: before_training(controls("small_empo")),
    },
    "mixture.md": {
        "theory": theory_table,
        "solver": lambda: solver_table(plain(TIMINGS / "mixture_cpu.csv")),
        "worlds": lambda: worlds_table(HERE / "mixture_world" / "results" / "summary.csv").rstrip(),
        "two models": lambda: two_models_table(plain(TIMINGS / "two_models_cpu.csv")),
        "in training": lambda: comparison(MIXTURES, "grpo"),
        "square": lambda: square_table(plain(SQUARE)),
        "square, differences": lambda: square_differences(plain(SQUARE)),
        "before training": lambda: before_training(controls("small_empo")),
    },
    "sequences.md": {
        "cost": lambda: cost_table(plain(TIMINGS / "step_terms_cpu.csv")),
        "front, equal coefficient": lambda: front_by_coefficient("small"),
        "front, equal KL": lambda: front_by_kl("small"),
        "front of SmolLM2, equal coefficient": lambda: front_by_coefficient("smollm2"),
        "front of SmolLM2, equal KL": lambda: front_by_kl("smollm2"),
    },
    "diffusion.md": {
        "line": lambda: "\n".join(figure.mixture_table("line.csv")),
        "plane": lambda: "\n".join(figure.mixture_table("plane.csv")),
        "plane, differences": lambda: "\n".join(figure.plane_differences()),
        "bound": lambda: "\n".join(figure.bound_table()),
        "digits": lambda: "\n".join(figure.digits_table()),
        "digits, differences": lambda: "\n".join(figure.differences_table()),
        "digits, equal KL": lambda: "\n".join(figure.equal_kl_table()),
        "clip": lambda: "\n".join(figure.clip_table()),
        "penalty": lambda: "\n".join(figure.penalty_table()),
    },
    "robot.md": {
        "drawer": lambda: drawer.table("drawer_open.csv"),
        "drawer, one behaviour": lambda: drawer.table("drawer_open_same.csv"),
    },
    "engines.md": {
        "mismatch": lambda: wrong_table(read_wrong()),
        "apart": lambda: apart_table(plain(TIMINGS / "apart.csv")),
    },
    "ppo.md": {"details": lambda: "\n".join(details.table(plain(details.FILE)))},
    "price.md": {
        "overoptimise": lambda: price("small_model", "policies"),
        "overoptimise, held": lambda: price("small_model", "held"),
        "overoptimise, fit": lambda: price("small_model", "fit"),
        "sentiment": lambda: price("sentiment", "policies"),
        "forgetting": lambda: forgetting.matched(forgetting.read()),
        "forgetting, predictors": lambda: forgetting.predictors(forgetting.read()),
        "forgetting, pass@k": lambda: forgetting.sharpening(forgetting.read()),
    },
    "offline.md": {
        "stitching": lambda: summary(committed()),
        "arms": lambda: logged_games.table(logged_games.read(), "guess_who"),
        "arms, online": lambda: logged_games.online(logged_games.read()),
    },
    "../examples/small_model/README.md": {"writers": lambda: writers_table(NOTATIONS, SLIP)},
}
"""Page, from docs/ -> name of a table -> what makes it."""


def filled(page: str) -> str:
    """The text of a page with its tables made again."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, table in TABLES[page].items():
        text = replace_table(text, name, table())
    return text


def main() -> None:
    for page in TABLES:
        write_atomic(DOCS / page, filled(page))
        print(f"wrote {DOCS / page}")


if __name__ == "__main__":
    main()
