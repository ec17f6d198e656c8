"""All benchmarks in one table, from the CSV files under results/: the ratio to the peer, and to the floor.

    python benchmarks/table.py        # `make bench` runs the benchmarks first

A row that has not been measured is left out. The floor is the time of a row's matrix products alone at the
rate of the faster library on that machine; the docstring of each benchmark says what it counts.
"""

import csv
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from common import show  # noqa: E402
from environment_rollout import ratios  # noqa: E402

RESULTS = HERE / "results"
Row = dict[str, str]
HEAD = {
    "all-rows": ("head, 2048 tokens, vocabulary 49,152", "2.5"),
    "20%-of-rows": ("the same, 20% of the coefficients", "6"),
    "large-vocabulary": ("the same, vocabulary 151,936", "2.5"),
}
DECODE = {
    ("short", "transformers"): ("sampling, 64 rows x 12 tokens", "transformers generate", "2"),
    ("short", "vllm"): ("sampling, 64 rows x 12 tokens", "vLLM", "1.8"),
    ("long", "transformers"): ("sampling, 64 rows x 64 tokens", "transformers generate", "2"),
    ("long", "vllm"): ("sampling, 64 rows x 64 tokens", "vLLM", "1.8"),
}


def read(name: str) -> list[Row]:
    path = RESULTS / name
    return list(csv.DictReader(path.open())) if path.exists() else []


def line(what: str, against: str, ours: float, theirs: float, target: str, floor: str, row: Row) -> Row:
    """One row: seconds of both, their ratio, the target, and klent's time over its floor."""
    return {
        "what": what,
        "against": against,
        "klent": f"{ours:.2f} s",
        "peer": f"{theirs:.2f} s",
        "faster": f"{theirs / ours:.2f}x",
        "target": f"{target}x",
        "to floor": floor,
        "threads": row["threads"],
        "date": row["date"],
    }


def head() -> Iterator[Row]:
    rows = read("head_cpu.csv")
    for case, (what, target) in HEAD.items():
        found = {row["implementation"]: row for row in rows if row["case"] == case}
        ours = found.get("chunked")
        peers = [row for name, row in found.items() if name.startswith("trl")]
        if ours and peers:
            peer = min(peers, key=lambda row: float(row["ms"]))
            seconds = [float(row["ms"]) / 1000 for row in (ours, peer)]
            yield line(what, peer["implementation"], *seconds, target, ours["ratio_to_floor"], ours)


def train_pass() -> Iterator[Row]:
    rows = read("train_pass_cpu.csv")
    for ours in rows:
        if ours["pass"] == "shared":
            others = {row["pass"]: row for row in rows if row["case"] == ours["case"]}
            for name in ("padded", "plain torch"):
                seconds = [float(row["seconds"]) for row in (ours, others[name])]
                what = f"training pass, {ours['case']}"
                yield line(what, name, *seconds, "2.5", ours["ratio_to_floor"], ours)


def decode() -> Iterator[Row]:
    rows = {(row["case"], row["contender"]): row for row in read("decode_cpu.csv")}
    for (case, peer), (what, against, target) in DECODE.items():
        ours, theirs = rows.get((case, "klent")), rows.get((case, peer))
        if ours and theirs:  # seconds for klent's number of tokens: rows end where chance ends them
            ratio = float(ours["tokens_per_second"]) / float(theirs["tokens_per_second"])
            seconds = float(ours["seconds"])
            yield line(what, against, seconds, ratio * seconds, target, ours["ratio_to_floor"], ours)


def step() -> Iterator[Row]:
    rows = read("step_cpu.csv")
    for device, neighbours in sorted({(row["device"], row["neighbours"]) for row in rows}):
        here = [row for row in rows if (row["device"], row["neighbours"]) == (device, neighbours)]
        best = {
            name: min(
                (r for r in here if r["trainer"] == name), key=lambda r: float(r["seconds"]), default=None
            )
            for name in ("klent", "trl")
        }
        ours, theirs = best["klent"], best["trl"]
        if not ours or not theirs:
            continue
        peer = f"TRL {theirs['version']}"
        seconds = [float(row["seconds"]) for row in (ours, theirs)]
        beside = "" if neighbours == "0" else f", beside {neighbours} busy process"
        yield line(f"GRPO step, 8 x 8 x 12 tokens{beside} ({device})", peer, *seconds, "5", "", ours)
        memory = [float(row["memory_gb"]) for row in (ours, theirs)]
        yield line("the same, peak memory", peer, *memory, "2", "", ours) | {
            "klent": f"{memory[0]:.1f} GB",
            "peer": f"{memory[1]:.1f} GB",
            "faster": f"{memory[1] / memory[0]:.2f}x less",
        }


def environment_rollout() -> Iterator[Row]:
    """Medians over repetitions of their ratio, since all contenders of one are slowed alike."""
    rows = read("environment_rollout_cpu.csv")
    for game in dict.fromkeys(row["game"] for row in rows):
        ours = [row for row in rows if (row["game"], row["contender"]) == (game, "klent")]
        found = ratios(rows, game, "trl")
        if ours and found:
            seconds = statistics.median(float(row["cpu"]) for row in ours)
            one = ours[0]
            peer = next(f"TRL {row['version']}" for row in rows if row["contender"] == "trl")
            what = f"{game}, {one['episodes']} episodes, {one['turns']} turns ({one['model']}, processor seconds)"
            yield line(what, peer, seconds, seconds * statistics.median(found), "1.5", "", one)


def main() -> None:
    table = [*head(), *train_pass(), *decode(), *step(), *environment_rollout()]
    if not table:
        sys.exit("nothing has been measured yet: run `make bench`")
    show(table, list(table[0]))


if __name__ == "__main__":
    main()
