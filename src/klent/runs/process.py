"""What a process that trains on a CPU asks of the system: memory that is kept, threads that wait in their sleep.

Both are asked before torch is imported, which reads its switches as it is loaded; what the user has set in the
environment takes precedence.

**Memory.** Training allocates and frees the same few hundred megabytes again and again. glibc returns a large
block to the system as soon as it is freed, and maps the next block of that size page by page, each page faulted
in and cleared: on the default job that was a fifth of a rollout. Kept blocks, in pages of 2 MB, cost nothing the
second time.

**Threads.** OpenMP's threads wait for one another after each product by spinning. Where another program wants one
of the cores, a spinning thread uses up the time in which the one it waits for could run.
"""

import ctypes
import os
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt's parameters in glibc's malloc.h


def prepare_process() -> None:
    """Both, for a process that has not imported torch yet."""
    keep_freed_memory()
    wait_without_spinning()


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait; call it before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, and map large blocks in large pages.

    Call it before torch is imported: torch reads its switch for large pages at its first allocation. Does
    nothing without glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 2**30)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
