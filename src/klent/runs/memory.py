"""How a process on a CPU gets and gives back memory.

Training allocates and frees the same few hundred megabytes over and over. glibc returns a large block to the
system as soon as it is free, and the next one of its size is handed out page by page, each page faulted in
and
cleared: on the default job that was a fifth of a rollout. Blocks that are kept, in pages of 2 MB, cost
    nothing
the second time.
"""

import ctypes
import os
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # the numbers of mallopt's parameters in glibc's malloc.h


def keep_freed_memory() -> None:
    """Let this process keep what it frees, and take large blocks in large pages.

    Call it before torch is imported: torch reads its switch for large pages at its first allocation.
    Environment variables that a user has set for either stay in charge. Does nothing without glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 2**30)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
