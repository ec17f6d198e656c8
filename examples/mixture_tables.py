"""Tables of docs/mixture.md: the theory from docs/claims.md, timings from benchmarks/results/."""

import re
from functools import cache
from pathlib import Path

from table import markdown  # examples/unsupervised, on the path of examples/tables.py

from klent.studies.controls import Rows

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ROOT / "docs" / "claims.md"

PASSES = 6.0
"""The solver's target, in passes of log-softmax."""

THEORY: list[tuple[str, str, str, str, tuple[str, ...]]] = [
    (
        "progress is eta·Φ₁ - eta²/2·Φ₂ + O(eta³)",
        "right, for its own step",
        "the remainder is {} of the quadratic term at eta 0.01, {} at 0.001",
        "progress-expansion",
        ("error of the expansion, eta 0.01", "error of the expansion, eta 0.001"),
    ),
    (
        "Φ₂ is the variance of the gradient estimate",
        "wrong: it is the curvature of a step taken for every token",
        "its ratio to that variance differs {}-fold between worlds",
        "progress-expansion",
        ("Φ₂ over the variance of a sample, largest over smallest (control)",),
    ),
    (
        "a large |Φ₁| is a good signal",
        "only for a reward relative to the policy itself",
        "with another reference Φ₁ is negative in {} of the worlds: the step leads away",
        "progress-expansion",
        ("share of worlds with Φ₁ < 0, r from another reference (control)",),
    ),
    (
        "robust against an unknown step size is the largest Φ₁/√Φ₂",
        "wrong: the proof maximises over eta where it announced a minimum",
        "largest ratio at alpha {}; largest worst case at {}, {} or {}, depending on the interval of eta",
        "snr-robust",
        (
            "median alpha of the largest SNR (control)",
            "median alpha of the largest worst progress, eta from 0.1 to 0.5",
            "median alpha of the largest worst progress, eta from 0.1 to 1.0",
            "median alpha of the largest worst progress, eta from 0.1 to 3.0",
        ),
    ),
    (
        "that ratio does not change when Φ₁ and Φ₂ are scaled",
        "wrong: only when r is scaled",
        "{} times as large with both doubled",
        "snr-robust",
        ("SNR with Φ₁ and Φ₂ doubled, over SNR",),
    ),
    (
        "the family is log-linear interpolation and the Pareto front of both KLs",
        "right",
        "the weighted sum of KLs exceeds its least value by exactly KL(other ‖ q): error {}",
        "geometric-family",
        ("largest |excess of the weighted sum of KLs - KL(other ‖ q)|",),
    ),
    (
        "it is the geodesic, the shortest path",
        "a geodesic of the exponential connection; not the shortest path",
        "{} times the Fisher-Rao distance in the mean; {} for logits three times as large",
        "geometric-family",
        (
            "Fisher-Rao length of the family over the shortest path, mean",
            "the same, mean, logits three times as large",
        ),
    ),
    (
        "exactly one alpha has equal KLs",
        "where both have the same support and differ",
        "the proof needs the derivative, -Var_q(log teacher/policy) < 0. Where each lacks a token of the "
        "other: in {} of the worlds",
        "kl-symmetry-unique",
        ("share with a solution, each lacks a token of the other",),
    ),
    (
        "|alpha_SNR - alpha_KL| < 0.1 mostly",
        "wrong in all four settings",
        "share of the worlds where SNR depends on q: {} (r = log(teacher/policy)), {} (policy part-way), {} "
        "(another reference), {} (binary reward)",
        "snr-kl-gap",
        (
            "r = log(target/policy): share of these with |alpha_SNR - alpha_KL| < 0.1",
            "policy part-way: share of these with |alpha_SNR - alpha_KL| < 0.1",
            "r from another reference: share of these with |alpha_SNR - alpha_KL| < 0.1",
            "binary reward: share of these with |alpha_SNR - alpha_KL| < 0.1",
        ),
    ),
    (
        "at alpha_KL the SNR is within 5 % of the best",
        "wrong in three settings of four",
        "in the same order {}, {}, {} and {} of all worlds ({} of those where SNR depends on q at all)",
        "snr-kl-gap",
        (
            "r = log(target/policy): share of all worlds that do",
            "policy part-way: share of all worlds that do",
            "r from another reference: share of all worlds that do",
            "binary reward: share of all worlds that do",
            "binary reward: share of these that lose less than 5 % of SNR at alpha_KL",
        ),
    ),
    (
        "sampling at alpha_KL lowers the noise",
        "in the median, and not in every world",
        "variance of a sampled gradient over on-policy's, median: Chernoff {}, teacher {}, best q {}; with "
        "Chernoff it is larger than on-policy's in {} of the worlds",
        "snr-kl-gap",
        (
            "variance of a sampled gradient over on-policy's, alpha_KL, median (control)",
            "variance of a sampled gradient over on-policy's, target, median (control)",
            "variance of a sampled gradient over on-policy's, best q, median (control)",
            "share of worlds where it is larger than on-policy's, alpha_KL (control)",
        ),
    ),
    (
        "2 to 5 times the sample efficiency",
        "depends on the world and on the learning rate",
        "on-policy over Chernoff, each at its best rate: {} where the policy is right once in 1000 times, {} "
        "once in 100, {} once in 5, where one batch is enough; {} with a misleading teacher. At the rate of "
        "on-policy the first is {}",
        "mixture-efficiency",
        (
            "right 1 in 1000: on-policy samples over those of Chernoff",
            "right 1 in 100: on-policy samples over those of Chernoff",
            "right 1 in 5: on-policy samples over those of Chernoff",
            "misled teacher: on-policy samples over those of Chernoff",
            "right 1 in 1000: on-policy samples over those of Chernoff at on-policy's learning rate "
            "(control)",
        ),
    ),
]
"""Statement, what is to be said of it, numbers with gaps for the figures of a claim, the claim, their names."""


@cache
def claim(name: str) -> tuple[str, dict[str, str]]:
    """Verdict and figures of a claim, as docs/claims.md gives them."""
    found = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", CLAIMS.read_text(encoding="utf-8"), re.M | re.S)
    verdict = found and re.search(r"^\*\*(.+?)\*\*:", found[1], re.M)
    if not found or not verdict:
        raise KeyError(f"docs/claims.md has no claim {name}; it names each in a heading of the third level")
    rows = re.findall(r"^\| (.+) \| ([^|]+) \|$", found[1], re.M)
    return verdict[1].lower(), {what.replace("\\|", "|"): value for what, value in rows}


def theory_table() -> str:
    """The statements about the mixture, with the figures and the verdict of their claims."""
    body = []
    for statement, said, numbers, name, figures in THEORY:
        verdict, known = claim(name)
        if lost := [figure for figure in figures if figure not in known]:
            raise KeyError(
                f"{name} has no figure {lost[0]!r} in docs/claims.md: name it in THEORY as it is there"
            )
        cells = [statement, said, numbers.format(*(known[figure] for figure in figures))]
        link = f"[{name}](claims.md#{name}), {verdict}"
        body.append([*(cell.replace("|", "\\|") for cell in cells), link])
    return markdown(["statement", "", "numbers", "claim and its verdict"], body)


def solver_table(rows: list[dict[str, str]]) -> str:
    """benchmarks/results/mixture_cpu.csv: passes of log-softmax by solver, and how often the target is met."""
    solvers = ("klent", "newton", "bisection", "brentq")
    by = {(r["pair"], r["vocabulary"], r["threads"], r["solver"]): r for r in rows}
    body, passes = [], []
    for pair, vocabulary, threads in dict.fromkeys(key[:3] for key in by):
        found = [by[pair, vocabulary, threads, solver] for solver in solvers]
        ours, *others = (float(row["log_softmax_passes"]) for row in found)
        passes.append(ours)
        cells = [f"**{ours:.1f}**", *(f"{other:.0f}" for other in others), f"{float(found[0]['ms']):.1f}"]
        body.append([pair, f"{int(vocabulary):,}", threads, *cells])
    over = [value / PASSES - 1 for value in passes if value > PASSES]
    missed = f"; the others miss it by {min(over):.0%} to {max(over):.0%}" if over else ""
    errors = {s: [float(r["error"]) for r in rows if r["solver"] == s] for s in solvers}
    worst = ", ".join(f"{solver} {max(values):.0e}" for solver, values in errors.items())
    table = markdown(["pair", "vocabulary", "threads", *solvers, "klent, ms"], body)
    met = f"klent meets the target of {PASSES:.0f} passes in {len(passes) - len(over)} of {len(passes)} cases"
    return f"{table}\n\n{met}{missed}.\nLargest error in alpha: {worst}."


MODELS = {
    "smollm2": "SmolLM2-135M and a second copy that is told the answer",
    "small": "two models of 1.1 million parameters, vocabulary 28",
}


def two_models_table(rows: list[dict[str, str]]) -> str:
    """benchmarks/results/two_models_cpu.csv: a token of the mixture over one of each model."""
    by = {(row["case"], row["contender"]): row for row in rows}
    body = []
    for case in dict.fromkeys(row["case"] for row in rows):
        alone = sum(float(by[case, name]["seconds"]) for name in ("policy", "target"))
        mixed = [by[case, f"mixture, {alpha}"] for alpha in ("alpha 0.5", "chernoff")]
        spans = [
            "{:.2f} [{:.2f}, {:.2f}]".format(*(float(row[key]) for key in ("over_both", "lowest", "highest")))
            for row in mixed
        ]
        body.append([MODELS[case], f"{alone:.2g} s", *(f"{span} times that" for span in spans)])
    return markdown(["models", "policy + target", "alpha 0.5", "Chernoff"], body)


def square_table(rows: list[dict[str, str]]) -> str:
    """examples/distill_square/results/square.csv: exact numbers of the trained students, 95% over seeds."""
    measured = ("kl_student_teacher", "kl_teacher_student", "entropy", "right", "found")
    heads = ["KL(student ‖ teacher)", "KL(teacher ‖ student)", "entropy", "right", "found in 32"]
    body = []
    for row in rows:
        cells = [
            "{:.3f} [{:.3f}, {:.3f}]".format(*(float(row[name + end]) for end in ("", "_low", "_high")))
            for name in measured
        ]
        body.append([row["divergence"], row["alpha"], *cells])
    return markdown(["divergence", "alpha", *heads], body)


def square_differences(rows: list[dict[str, str]]) -> str:
    """The same less reverse KL on the student's own prefixes, paired by seed."""
    measured = ("kl_student_teacher", "kl_teacher_student", "right", "found")
    heads = ["KL(student ‖ teacher)", "KL(teacher ‖ student)", "right", "found in 32"]
    body = []
    for row in rows:
        if (row["divergence"], row["alpha"]) == ("reverse", "1"):
            continue
        names = [f"{name}_difference" for name in measured]
        cells = [
            "{:+.3f} [{:+.3f}, {:+.3f}]".format(*(float(row[name + end]) for end in ("", "_low", "_high")))
            for name in names
        ]
        body.append([row["divergence"], row["alpha"], *cells])
    return markdown(["divergence", "alpha", *heads], body)


def before_training(rows: Rows) -> str:
    """What the small model gives before any training, from the output of `klent controls`."""
    row = next(row for row in rows if row["arm"] == "before training" and row["temperature"] == 1.0)
    return (
        f"Before training, at temperature 1: pass@1 {row['accuracy']:.3f}, pass@{row['samples']} "
        f"{row['pass@k']:.3f}, entropy {row['entropy']:.3f} nats\n({row['problems']} problems, measured once: "
        "[small_empo.csv](../examples/unsupervised/results/small_empo.csv))."
    )


def writers_table(share: dict[str, float], slip: dict[str, float]) -> str:
    """The two kinds of writers of examples/small_model/texts.py."""
    kinds = {
        "careful": ("abc", "no: they work from left to right"),
        "sloppy": ("de", "yes"),
    }
    body = []
    for kind, (notations, first) in kinds.items():
        (wrong,) = {slip[notation] for notation in notations}
        cells = [
            ", ".join(notations),
            f"{sum(share[notation] for notation in notations):.0%}",
            f"{wrong:.0%}",
        ]
        body.append([kind, *cells, first])
    return markdown(["", "notations", "texts", "a step is wrong", "products first"], body)
