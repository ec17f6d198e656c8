"""A folder goes to the hub only where somebody may write there, private unless asked otherwise; no network here."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError
from tiny import tiny_folder
from typer.testing import CliRunner

from klent.cli import app
from klent.errors import ConfigError, ModelError
from klent.models.hub import Hub, open_hub, push_folder


class Stub:
    """What klent asks of ``HfApi``, in order; ``failing`` names a call that is refused."""

    failing = ""
    refusal: Exception = OSError("403 Forbidden: you may not write there\nmore")

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> str:
            if name == self.failing:
                raise self.refusal
            files = sorted(f.name for f in Path(named.get("folder_path", "nothing")).glob("*"))
            self.asked.append((name, {"arguments": arguments, "files": files, **named}))
            return f"https://huggingface.co/{arguments[0]}" if arguments else ""

        return call


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """A hub that takes everything, and a token."""
    stub = Stub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return stub


@pytest.mark.parametrize("public", [False, True])
def test_a_new_repository_is_private_unless_asked_otherwise(stub: Stub, tmp_path: Path, public: bool) -> None:
    hub = open_hub("me/my-model")
    assert [name for name, _ in stub.asked] == ["whoami"]
    (tmp_path / "README.md").write_text("card")
    assert push_folder(hub, tmp_path, public=public, message="run") == "https://huggingface.co/me/my-model"
    (made, how), (sent, what) = stub.asked[1:]
    assert (made, how["arguments"], how["private"], how["exist_ok"]) == (
        "create_repo",
        ("me/my-model",),
        not public,
        True,
    )
    assert (sent, what["repo_id"], what["files"]) == ("upload_folder", "me/my-model", ["README.md"])


def test_who_may_not_write_is_told_before_anything_is_written(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, said in (("my-model", "write OWNER/my-model"), ("a b/c", "not a valid repository name")):
        with pytest.raises(ConfigError, match=said):
            open_hub(name)
    stub.failing, stub.refusal = "whoami", ConnectionError("no route to host")
    with pytest.raises(ModelError, match="the hub cannot be reached: no route to host"):
        open_hub("me/my-model")
    stub.refusal = HfHubHTTPError.__new__(HfHubHTTPError)
    stub.refusal.args = ("401 Client Error",)
    with pytest.raises(ConfigError, match="does not take this machine's token"):
        open_hub("me/my-model")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"needs a token .* `hf auth login`, or set HF_TOKEN"):
        open_hub("me/my-model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        open_hub("me/my-model")
    assert stub.asked == []


def test_a_refusal_is_one_sentence_and_the_folder_stays(stub: Stub, tmp_path: Path) -> None:
    stub.failing = "upload_folder"
    with pytest.raises(ModelError, match=r"me/m was not written: 403 Forbidden.*`hf upload me/m ") as caught:
        push_folder(Hub(stub, "me/m"), tmp_path, public=False, message="run")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert tmp_path.exists()


RECIPE = """
model: model
method: grpo
task: {data: prompts.jsonl}
reward: exact
steps: 1
prompts_per_step: 1
group_size: 2
rollout: {max_tokens: 2}
eval: null
"""


def test_export_writes_the_folder_and_pushes_it(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    rows = [{"prompt": f"say {i}", "answer": str(i)} for i in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert CliRunner().invoke(app, ["train", "tiny.yaml"]).exit_code == 0
    result = CliRunner().invoke(app, ["export", "tiny", "--to", "out", "--push", "me/tiny"])
    assert result.exit_code == 0, result.output
    assert "pushed: https://huggingface.co/me/tiny" in result.output
    assert {"README.md", "config.json", "model.safetensors"} <= set(stub.asked[-1][1]["files"])
    assert stub.asked[1][1]["private"]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    refused = CliRunner().invoke(app, ["export", "tiny", "--to", "other", "--push", "me/tiny"])
    assert refused.exit_code == 2
    assert not Path("other").exists()
    assert CliRunner().invoke(app, ["export", "tiny", "--to", "other", "--public"]).exit_code == 2
