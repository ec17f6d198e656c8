"""``klent audit``: targets, settings, JSON, pictures and exit status."""

import json
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from klent.audit import certify
from klent.audit.call import wire
from klent.audit.command import audit_command, find_loss, parse_settings
from klent.audit.picture import BEHAVIOUR, REFERENCE, field, truth_of
from klent.errors import ConfigError
from klent.objectives import kl_in_loss, ppo_clip


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file with losses that somebody wrote."""
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent(
            """
            import torch

            def penalty(logp, logp_ref, mask, beta=0.5):
                return beta * (logp - logp_ref) ** 2 / 2

            def broken(logp, mask):
                return logp.undefined

            def batch(logp, logp_ref, mask):
                return (logp - logp_ref) ** 2 / mask.sum()
            """
        )
    )
    return file


def test_a_function_of_a_file(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit_command(f"{mine}:penalty", ["beta=2e-1"], json=True, picture=None) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["target"] == "penalty"
    assert known["settings"] == {"beta": 0.2}
    assert known["on_policy"]["coefficients"] == pytest.approx({"reverse_kl_token": 0.2})
    assert known["off_policy"]["follows"] == "unknown"


def test_tables(mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert audit_command("klent.objectives:kl_in_loss", ["coef=1.0", "divergence=forward"], False, None) == 0
    text = capsys.readouterr().out
    assert "kl_in_loss(coef=1.0, divergence=forward)" in text
    assert "minimises KL(reference ‖ policy), token by token" in text
    for word in ("forward_kl_token", "relative error", "variance", "padding", "ignored", "pull to ref"):
        assert word in text
    assert audit_command(f"{mine}:batch", [], False, None) == 0
    assert "pairs of completions" in capsys.readouterr().out


def test_a_reward_is_audited_through_its_policy_gradient(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit_command("kl_in_reward", ["coef=1.0"], json=True, picture=None) == 0
    assert json.loads(capsys.readouterr().out)["on_policy"]["follows"] == "reverse_kl"
    assert audit_command("kl_in_reward", ["coef=1.0"], json=False, picture=None) == 0
    assert "a reward: audited through the policy gradient" in capsys.readouterr().out


def test_a_broken_loss_is_reported(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit_command(f"{mine}:broken", [], json=False, picture=None) == 1
    text = capsys.readouterr().out
    assert "no certificate: it raised AttributeError" in text
    assert "(mine.py:8)" in " ".join(text.split())
    assert audit_command(f"{mine}:broken", [], json=True, picture=None) == 1
    assert json.loads(capsys.readouterr().out)["problem"].startswith("raised AttributeError")


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("no_such_function", [], "is not a function of klent.objectives"),
        ("no.such.module:loss", [], "a target is FILE.py:function"),
        ("math:pi", [], "is not a function"),
        ("missing.py:loss", [], "no such file"),
        ("kl_in_loss", ["coef"], "a setting is written key=value"),
        ("kl_in_loss", ["coef=[1"], "not valid YAML"),
    ],
)
def test_what_cannot_be_audited(target: str, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        audit_command(target, settings, json=False, picture=None)


def test_a_reduction_is_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert audit_command("kl_in_reward", ["coef=1.0"], json=True, picture=None, reduce="sequences") == 0
    known = json.loads(capsys.readouterr().out)
    assert known["on_policy"]["follows"] == "unknown"
    assert known["reduction"]["unexplained"]["on_policy"] == pytest.approx(0.16, abs=0.005)
    for settings, target, reduce, message in (
        (["coef=1.0"], "kl_in_reward", "token", "--reduce token: a reduction is over tokens, sequences"),
        (["reduce=tokens"], "reinforce", None, "the reduction is an option: --reduce tokens"),
        ([], "trl", "tokens", "--reduce is for one loss"),
    ):
        with pytest.raises(ConfigError, match=message):
            audit_command(target, settings, False, None, reduce)


def test_settings_and_targets() -> None:
    assert parse_settings(["coef=2e-5", "ratio=sequence", "dual_clip=null", "bounds=[0.1, 0.2]"]) == {
        "coef": 2e-5,
        "ratio": "sequence",
        "dual_clip": None,
        "bounds": [0.1, 0.2],
    }
    assert find_loss("klent.objectives:ppo_clip") == (ppo_clip, False)
    assert find_loss("klent.objectives.kl:kl_in_loss") == (kl_in_loss, False)


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_pictures(mine: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / f"field.{suffix}"
    assert audit_command(f"{mine}:penalty", [], json=False, picture=picture) == 0
    assert f"picture: {picture}" in capsys.readouterr().out
    content = picture.read_bytes()
    assert len(content) > 5000
    if suffix == "svg":
        text = "".join(ElementTree.fromstring(content).itertext())
        for word in ("on-policy", "off-policy", "reference", "behaviour", "reverse_kl"):
            assert word in text


def test_pictures_that_cannot_be_drawn(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.svg"):
        audit_command(f"{mine}:penalty", [], json=False, picture=tmp_path / "field.gif")
    with pytest.raises(ConfigError, match="several"):
        audit_command("trl", [], json=False, picture=tmp_path / "field.svg")
    assert audit_command(f"{mine}:broken", [], json=False, picture=tmp_path / "field.svg") == 1
    assert not (tmp_path / "field.svg").exists()


def test_the_field_of_the_reverse_kl_is_the_true_one() -> None:
    loss, truth = wire(kl_in_loss, {"coef": 1.0}), {"reverse_kl": 1.0}
    for off_policy in False, True:
        found = field(loss, truth, off_policy=off_policy)
        torch.testing.assert_close(found.loss, found.truth)
        assert found.loss.sum(dim=1).abs().max() < 1e-12  # probability is only moved
        towards = torch.tensor(REFERENCE, dtype=torch.float64) - found.points
        assert (torch.cosine_similarity(towards, found.loss, dim=1) > 0).all()
    other = field(wire(kl_in_loss, {"coef": 1.0, "divergence": "forward"}), truth, off_policy=False)
    assert other.cosine.min() < 0.9
    assert REFERENCE != BEHAVIOUR


def test_what_a_field_is_drawn_against() -> None:
    def bonus(logp, entropy, mask):  # type: ignore[no-untyped-def]
        return -0.1 * entropy

    assert truth_of(certify(kl_in_loss, coef=1.0, divergence="forward")) == {"reverse_kl": 1.0}
    assert truth_of(certify(ppo_clip)) == pytest.approx({"expected_reward": -1})
    assert truth_of(certify(bonus)) == pytest.approx({"entropy": -0.1})
