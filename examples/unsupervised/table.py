"""The output of `klent controls` as Markdown tables.

    python examples/unsupervised/table.py CONTROLS.csv

One row per arm: held-out pass@1 at temperature 1 and greedily (mean over seeds, lowest and highest in
brackets), its change against the model before training at that temperature (two margins of 95 %: over
problems, paired, and over seeds), pass@k and a vote of k at temperature 1. Then differences between arms, with
the same two margins. `examples/tables.py` writes these tables into docs/unsupervised.md.
"""

import math
import statistics
import sys
from pathlib import Path

from klent.kit.grid import grid_optimum
from klent.kit.statistics import Z95
from klent.studies.controls import BEFORE, Difference, Rows, difference, over_seeds, read_csv, summary

BETWEEN = (("another prompt", "as written"), ("this, then RL", "RL"), ("RL, then this", "RL"))


def arms_table(rows: Rows) -> str:
    """One row per arm, and the best vote before training."""
    lines = {(line["arm"], line["temperature"]): line for line in summary(rows)}
    samples = max(int(row["samples"]) for row in rows)
    heads = ["arm", "temperature 1", "change", "greedy", "change", f"pass@{samples}", f"vote of {samples}"]
    body = []
    for arm in dict.fromkeys(name for name, _ in lines):
        sampled, greedy = lines[arm, "1"], lines[arm, "greedy"]
        cells = [value(sampled), change(sampled), value(greedy), change(greedy)]
        body.append([arm, *cells, *(sampled[key] for key in ("pass@k", "majority", "entropy"))])
    best = best_vote(rows)
    vote = f"Best vote before training: {best['majority']:.3f}, at temperature {best['temperature']:g}."
    return f"{markdown([*heads, 'entropy'], body)}\n\n{vote} Problems: {rows[0]['problems']}."


def baselines_table(measured: dict[str, Rows]) -> str:
    """What models give before training: name -> the output of `klent controls`."""
    heads = ["task, token limit", "problems", "temperature 1", "0.6", "0.3", "greedy", "vote of 4 at 1"]
    body = []
    for name, rows in measured.items():
        at = {row["temperature"]: row for row in rows if row["arm"] == BEFORE}
        shares = [at[t]["accuracy"] for t in (1.0, 0.6, 0.3, 0.0)]
        shares += [at[1.0]["majority"], at[0.3]["majority"], at[1.0]["pass@k"]]
        body.append([name, str(at[1.0]["problems"]), *(f"{share:.2f}" for share in shares)])
    return markdown([*heads, "vote of 4 at 0.3", "pass@4 at 1"], body)


def differences_table(rows: Rows, trained_at: float) -> str:
    """Differences between arms: by seed, and with their margins over problems and over seeds."""
    table = solved(rows)
    body = [
        difference_row("as written - before training", trained_at, gain(rows, "as written", trained_at)),
        difference_row("as written - best vote before training", trained_at, over_vote(rows, trained_at)),
    ]
    for arm, other in BETWEEN:
        for temperature in (0.0, trained_at, 1.0):
            found = difference(table[arm, temperature], table[other, temperature])
            body.append(difference_row(f"{arm} - {other}", temperature, found))
    return markdown(["difference", "temperature", "by seed", "mean", "± over problems", "± over seeds"], body)


def difference_row(name: str, temperature: float, found: Difference) -> list[str]:
    """One row of `differences_table`."""
    by_seed = ", ".join(f"{change:+.3f}" for change in found.by_seed)
    margins = [f"{found.over_problems:.3f}", over_seeds(found)]
    return [name, f"{temperature:g}" if temperature else "greedy", by_seed, f"{found.mean:+.3f}", *margins]


def gain(rows: Rows, arm: str, temperature: float) -> Difference:
    """An arm against the model before training, at one temperature."""
    table = solved(rows)
    return difference(table[arm, temperature], table[BEFORE, temperature])


def over_vote(rows: Rows, temperature: float) -> Difference:
    """The recipe against the best vote before training, whose problems are not paired: only its share is known."""
    vote = best_vote(rows)
    share, count = vote["majority"], vote["problems"]
    found = difference(solved(rows)["as written", temperature], [[share] * count])
    binomial = Z95 * math.sqrt(share * (1 - share) / count)
    return found._replace(over_problems=math.hypot(found.over_problems, binomial))


def steps_table(rows: list[dict[str, str]]) -> str:
    """Evaluations during training, mean over seeds with the lowest and the highest."""
    names = [name for name in rows[0] if name not in ("seed", "step")]
    body = []
    for step in dict.fromkeys(row["step"] for row in rows):
        seeds = [[float(row[name]) for row in rows if row["step"] == step] for name in names]
        body.append([step, *(spread(values) for values in seeds)])
    return markdown(["step", *names], body)


def solved(rows: Rows) -> dict[tuple[str, float], list[list[float]]]:
    """(arm, temperature) -> the share of right answers, ``[seed][problem]``."""
    table: dict[tuple[str, float], list[list[float]]] = {}
    for row in rows:
        table.setdefault((row["arm"], row["temperature"]), []).append(row["solved"])
    return table


def best_vote(rows: Rows) -> dict:
    """The best vote before training, over temperatures; a best one at the highest measured is refused."""
    before = sorted((row for row in rows if row["arm"] == BEFORE), key=lambda row: row["temperature"])
    votes = [row["majority"] for row in before]
    where = [row["temperature"] for row in before]
    return before[grid_optimum(where, votes, best="largest", domain=(0.0, math.inf))]


def value(line: dict[str, str]) -> str:
    """An accuracy and its range over seeds."""
    return line["accuracy"] + (f" ({line['over seeds']})" if line["over seeds"] != "–" else "")


def change(line: dict[str, str]) -> str:
    """A change with its margins over problems and over seeds."""
    if line["change"] == "–":
        return "–"
    margin = line["± over seeds"]
    return f"{line['change']}, {'seeds equal' if margin == 'equal' else f'± {margin}'}"


def spread(values: list[float]) -> str:
    """A mean with its range."""
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def markdown(heads: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [f"| {' | '.join(cells)} |" for cells in [heads, *body]]
    return "\n".join([rows[0], "|" + "---|" * len(heads), *rows[1:]])


def main(path: str) -> None:
    rows = read_csv(Path(path))
    print(arms_table(rows))
    table = solved(rows)
    if all((arm, 1.0) in table for pair in BETWEEN for arm in pair):
        trained_at = next(t for arm, t in table if arm == "as written" and t not in (0.0, 1.0))
        print(f"\n{differences_table(rows, trained_at)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
