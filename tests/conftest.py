import os
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The GPU head's kernels run in Triton's interpreter, which must be on before Triton is first imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Workers of pytest-xdist share the cores: one thread each, before torch counts them. The goldens ask for their own,
# and threads that wait must not spin on a core that another worker could use.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


# Files whose tests take longest come first, so that no worker is alone with one at the end.
LONGEST = (
    "test_goldens.py",
    "test_loop.py",
    "test_resume.py",
    "test_claims.py",
    "test_end_to_end.py",
    "test_hostile_runs.py",
    "test_kill.py",
    "test_unsupervised.py",
    "test_pull.py",
    "test_small_model.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of LONGEST, then as collected."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of an earlier test that was given --debug leaves the switch on."""
    if "klent.cli.common" in sys.modules:
        monkeypatch.setattr(sys.modules["klent.cli.common"], "_debug", False)
