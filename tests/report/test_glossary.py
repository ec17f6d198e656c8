"""Every metric is described, and docs/metrics.md is what the glossary says."""

import random
import re
from pathlib import Path

import pytest

import klent
from klent.report.glossary import EVALUATION, GLOSSARY, describe, markdown

from .fake_run import evaluation, metrics

ROOT = Path(__file__).parents[2]
PINNED = [
    "step",
    "reward/mean",
    "reward/unscorable",
    "completion/length",
    "policy/entropy",
    "policy/entropy_delta",
    "policy/entropy_delta_predicted",
    "policy/covariance",
    "kl/reference",
    "objective/zero_fraction",
    "grad/norm",
    "time/step",
    "time/rollout",
    "time/train",
    "tokens/rollout_per_second",
    "tokens/train_per_second",
]


def test_the_page_in_docs_is_generated() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == markdown(), "run: python -m klent.report.glossary"


def test_every_pinned_metric_is_described() -> None:
    assert set(PINNED) <= set(GLOSSARY)
    assert set(metrics(1, 2, random.Random(0))) <= set(GLOSSARY)


def test_every_metric_that_training_writes_is_described() -> None:
    package = Path(klent.__file__).parent
    folders = ("measure", "control", "training", "runs", "rollout", "streams")
    source = "".join(path.read_text() for folder in folders for path in (package / folder).glob("*.py"))
    families = "|".join(sorted({name.split("/")[0] for name in GLOSSARY if "/" in name}))
    written = set(re.findall(rf'"((?:{families})/[a-z_0-9]+)"', source))
    assert len(written) > 15, "the pattern no longer finds the names"
    units = {"tokens/s"}
    assert written - set(GLOSSARY) - set(EVALUATION) - units == set()


def test_every_key_of_an_evaluation_is_described() -> None:
    described = {name.replace("<k>", "2") for name in EVALUATION} | {"split"}
    assert set(evaluation(0, 0.5, random.Random(0))) <= described


@pytest.mark.parametrize("name", [*GLOSSARY, *EVALUATION])
def test_a_term_is_whole_sentences(name: str) -> None:
    term = GLOSSARY.get(name) or EVALUATION[name]
    assert term.definition[0].isupper()
    assert term.definition.endswith(".")
    assert term.reading.endswith(".")
    assert "percent" not in term.unit


def test_families_and_strangers() -> None:
    assert describe("reward/mean") is GLOSSARY["reward/mean"]
    assert describe("reward/format") is GLOSSARY["reward/<name>"]
    assert describe("objective/ratio") is GLOSSARY["objective/<name>"]
    assert describe("mine/own").definition == "Not described by klent."
