"""Check on a GPU what the other tests can only check on a CPU. `make test-gpu`; a few minutes on one GPU.

    python tests/gpu/run.py                     # every check on cuda
    python tests/gpu/run.py masters_learn       # some of them
    python tests/gpu/run.py --device cpu        # small, in Triton's interpreter: whether the checks themselves run

Needs a Python with torch, triton, transformers and klent's light dependencies; klent need not be installed. Without a
GPU it says so, and ends well. The last line tells device and versions, for the record.
"""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # what deterministic algorithms ask for, before torch


def why_not(device: str) -> str | None:
    """Why nothing can be checked here; None where it can."""
    try:
        import torch
    except ImportError as error:
        return f"torch is missing ({error})"
    if device.startswith("cuda") and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU; --device cpu runs the checks small"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", help="names; all by default")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if reason := why_not(options.device):
        print(f"nothing checked: {reason}")
        return 0
    if options.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    import torch
    import transformers
    from checks import CHECKS

    if unknown := set(options.checks) - CHECKS.keys():
        parser.error(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    failed = []
    for name in options.checks or CHECKS:
        started = time.perf_counter()
        try:
            outcome = f"ok      {CHECKS[name](options.device)}"
        except Exception as error:  # one that fails does not keep the others from being seen
            failed.append(name)
            traceback.print_exc()
            outcome = f"FAILED  {type(error).__name__}: {str(error)[:300]}"
        print(f"{name:32} {time.perf_counter() - started:6.1f} s  {outcome}", flush=True)
    device = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "CPU"
    print(
        f"{device}; torch {torch.__version__}, transformers {transformers.__version__}; {len(failed)} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
