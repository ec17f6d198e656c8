"""The output of `klent controls` as a Markdown table.

    python examples/unsupervised/table.py CONTROLS.csv

One row per arm: held-out pass@1 at temperature 1 and greedily (mean over seeds, lowest and highest in
brackets), its change against the model before training at that temperature (problem by problem, 95 % interval
over problems), pass@k and a vote of k at temperature 1.
"""

import sys
from pathlib import Path

from klent.studies.controls import read_csv, summary


def main(path: str) -> None:
    rows = read_csv(Path(path))
    lines = {(line["arm"], line["temperature"]): line for line in summary(rows)}
    samples = max(int(row["samples"]) for row in rows)
    k = f"pass@{samples} | vote of {samples}"
    print(f"| arm | temperature 1 | change | greedy | change | {k} | entropy |")
    print("|---|---|---|---|---|---|---|---|")
    for arm in dict.fromkeys(name for name, _ in lines):
        sampled, greedy = lines[arm, "1"], lines[arm, "greedy"]
        print(
            f"| {arm} | {value(sampled)} | {sampled['change']} | {value(greedy)} | {greedy['change']} "
            f"| {sampled['pass@k']} | {sampled['majority']} | {sampled['entropy']} |"
        )
    votes = [row["majority"] for row in rows if row["arm"] == "before training"]
    print(f"\nBest vote before training: {max(votes):.3f}. Problems: {rows[0]['problems']}.")


def value(line: dict[str, str]) -> str:
    return line["accuracy"] + (f" ({line['over seeds']})" if line["over seeds"] != "–" else "")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
