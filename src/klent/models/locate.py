"""From a model's name to its folder: an alias, a folder, or a hub id.

What transformers would refuse later, less clearly or not at all, is refused here.
"""

import json
import re
from pathlib import Path

from klent.errors import ModelError, first_line
from klent.kit.names import closest
from klent.models.pull import KNOWN, pulled

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "*.tiktoken"]
HUB_COPIES = ["original/*", "consolidated*", "onnx/*"]  # the same weights again, for other programs
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def locate_model(name: str) -> Path | str:
    """Where a model is: the folder of an alias, a folder that looks complete, or a hub id as it is.

    An alias wins over a folder of the same name; write ``./name`` for the folder.

    Raises:
        ModelError: an alias that has not been pulled, a name that is none of the three, or a folder that is
            not a model; the message says what is missing.
    """
    if name in KNOWN:
        if not KNOWN[name].generates:
            raise ModelError(f"{name} is an embedding model, for rewards only; name a language model")
        if folder := pulled(name):
            return folder
        raise ModelError(f"{name} is not on this machine yet: run `klent models pull {name}`")
    path = Path(name).expanduser()
    if path.exists():
        check_folder(path)
        return path
    if HUB_ID.fullmatch(name):
        return name
    if "/" in name:
        raise ModelError(f"there is no model folder at {name}; check the path")
    near = closest(name, KNOWN, cutoff=0.5)
    meant = f" Did you mean {near!r}?" if near else ""
    raise ModelError(
        f"no model is called {name!r}.{meant} A model is an alias ({', '.join(KNOWN)}), "
        "a folder, or a hub id such as org/name"
    )


def check_folder(folder: Path) -> None:
    """Raise ModelError unless ``folder`` has a config and every file of its safetensors weights."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file; a model is a folder with config.json and *.safetensors")
    index = folder / "model.safetensors.index.json"
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise ModelError(f"cannot read the model folder {folder}: {error.strerror}") from error
    if "config.json" not in names:
        raise ModelError(f"{folder} has no config.json{_kind_of_folder(folder, names)}")
    _read_json(folder / "config.json")
    weight_map = _read_json(index).get("weight_map") if index.name in names else None
    shards = {str(shard) for shard in weight_map.values()} if isinstance(weight_map, dict) else set()
    if missing := sorted(shards - names):
        raise ModelError(f"{folder} is incomplete: {', '.join(missing)} is missing. Copy the model again")
    if any(name.endswith(".safetensors") for name in names):
        return
    if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        raise ModelError(
            f"{folder} has only pickled weights ({', '.join(pickles)}), and reading a pickle can run code. "
            "If you trust it, load it in Python and write safetensors with model.save_pretrained(folder)"
        )
    raise ModelError(f"{folder} has no weights: there is no *.safetensors file in it")


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged: it is not JSON ({error}). Copy the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it is not a JSON object. Copy the model again")
    return content


def _kind_of_folder(folder: Path, names: set[str]) -> str:
    if "adapter_config.json" in names:
        return ": it is a LoRA adapter. Merge it into its model first, or use a run's final/ folder"
    if "manifest.json" in names and folder.parent.name == "checkpoints":
        run, step = folder.parent.parent, folder.name.lstrip("0") or "0"
        return f": it is a checkpoint. `klent export {run} --step {step}` writes it as a model to {run}/step-{step}"
    if (folder / "final" / "config.json").exists():
        return f": it is a run, and its trained model is {folder / 'final'}"
    return ", so it is not a model"


def download(hub_id: str, *, trust_remote_code: bool) -> Path:
    """The folder of a hub model, from the hub's own cache where it is there already."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    files = [*HUB_FILES, "*.py"] if trust_remote_code else HUB_FILES
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=files, ignore_patterns=HUB_COPIES))
    except GatedRepoError as error:
        raise ModelError(
            f"{hub_id} is gated: accept its terms on its hub page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{hub_id} is neither a folder here nor a public model on the hub. Check the spelling; for a private "
            "model log in with `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{hub_id} is not a folder here, and the hub could not be reached to download it. Give the path "
            "of a local model folder, or one of `klent models ls`, which come from a package index"
        ) from error
    except Exception as error:  # the hub client passes on whatever its transport raised
        raise ModelError(f"cannot download {hub_id}: {first_line(error)}") from error
    check_folder(folder)
    return folder
