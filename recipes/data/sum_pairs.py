"""Pairs of answers to the sums of sums.jsonl: the better one is right, the worse one is right in form alone.

python recipes/data/sum_pairs.py   # writes sum_pairs.jsonl beside this file
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent


def rows() -> list[dict[str, object]]:
    """The sums with a wrong result beside the right one, which is off by 1, 2 or 10."""
    draw = random.Random("sum pairs")
    pairs: list[dict[str, object]] = []
    for line in (HERE / "sums.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        left = row["completion"].rpartition(" = ")[0]
        wrong = int(row["answer"]) + draw.choice((-10, -2, -1, 1, 2, 10))
        pairs.append({"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"{left} = {wrong}"})
    return pairs


def text() -> str:
    """The file."""
    return "".join(json.dumps(row) + "\n" for row in rows())


if __name__ == "__main__":
    (HERE / "sum_pairs.jsonl").write_text(text(), encoding="utf-8")
