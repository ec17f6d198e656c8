"""What `klent sample` draws, from one model and between two."""

import pytest
from tiny import tiny_folder

from klent.errors import ConfigError
from klent.runs.sample import read_alpha, sample, sample_mixture


def test_between_two_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "a")
    tiny_folder(tmp_path / "b", seed=1)
    settings = {"count": 2, "max_tokens": 9, "seed": 4}
    own, other = (sample(model, "Hi", **settings) for model in ("a", "b"))
    assert own != other
    for alpha, expected in (("1.0", own), ("0", other)):
        assert [one.text for one in sample_mixture("a", "b", "Hi", alpha=alpha, **settings)] == expected
    for one in sample_mixture("a", "b", "Hi", **settings):
        assert "".join(one.tokens).startswith(one.text)
        assert len(one.alpha) == len(one.tokens) == len(one.log_weight)
        assert one.kl_policy == pytest.approx(one.kl_target, abs=1e-5)
    hinted = sample_mixture("a", "a", "Hi", target_prompt="{prompt}, say 7", **settings)
    assert min(one.kl_policy[0] for one in hinted) > 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ess", "ess needs a value"),
        ("chernoff=1", "chernoff takes no value"),
        ("2", r"weight must lie in \[0, 1\]"),
        ("half", "expected a number in"),
        ("ess=x", "expected a number in"),
    ],
)
def test_alphas_that_are_none(text, message):
    with pytest.raises(ConfigError, match=message):
        read_alpha(text)
