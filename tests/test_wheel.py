"""What `pip install klent` brings: a wheel that trains by itself, and an sdist from which the same wheel is made."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny import tiny_folder

pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install 'klent[dev]'")

REPO = Path(__file__).parents[1]


def run(*words: str, cwd: Path, path: Path | None = None) -> str:
    """What a Python process says whose only klent is in ``path``."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in given if not (Path(entry) / "klent").is_dir()]
    environment["PYTHONPATH"] = os.pathsep.join([*([str(path)] if path else []), *filter(None, kept)])
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of wheel and sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "hatchling", "build", "-d", str(folder), cwd=REPO)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked: which is how one of pure Python is installed."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    return target


def files(folder: Path, name: str, kinds: set[str]) -> set[str]:
    """Files of a folder, as a wheel calls them."""
    paths = (path for path in folder.rglob("*") if path.suffix in kinds or path.name == "py.typed")
    return {f"{name}/{path.relative_to(folder).as_posix()}" for path in paths}


def test_every_file_that_is_no_python_is_in_the_wheel(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    wanted = files(REPO / "src" / "klent", "klent", {".py", ".j2", ".css", ".js"})
    wanted |= files(REPO / "recipes", "klent/_recipes", {".yaml", ".jsonl"})
    assert len(wanted) > 400
    assert wanted - names == set()


def test_the_sdist_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again"), cwd=root)
    one, other = next(built.glob("*.whl")), next((tmp_path / "again").glob("*.whl"))
    contents = []
    for file in (one, other):
        with zipfile.ZipFile(file) as wheel:
            contents.append({name: wheel.read(name) for name in wheel.namelist()})
    assert contents[0] == contents[1]


@pytest.mark.timeout(1200)
def test_it_trains_outside_the_clone(installed: Path, tmp_path: Path) -> None:
    where = run("-c", "import klent; print(klent.__file__)", cwd=tmp_path, path=installed)
    assert where.strip() == str(installed / "klent" / "__init__.py")
    assert "quickstart" in run("-m", "klent", "recipes", "ls", cwd=tmp_path, path=installed)
    tiny_folder(tmp_path / "tiny")
    words = ["train", "sft", "model=./tiny", "steps=1", "prompts_per_step=2", "eval=null", "reward=null"]
    run("-m", "klent", *words, "rollout.max_tokens=64", cwd=tmp_path, path=installed)
    assert "<title>sft" in (tmp_path / "runs" / "sft" / "report.html").read_text()
    assert (tmp_path / "runs" / "sft" / "final" / "model.safetensors").is_file()
    copied = run("-m", "klent", "recipes", "cp", "sft", "mine.yaml", cwd=tmp_path, path=installed)
    assert "wrote mine.yaml" in copied
    assert (tmp_path / "data" / "sums.jsonl").is_file()
