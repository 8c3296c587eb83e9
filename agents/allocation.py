"""Memory that a learner frees it will want again at its next update: the process keeps it.

glibc hands large pieces back to the system as soon as enough of them are free at the heap's end, and what comes back later
comes page by page, zeroed, each with a fault. A worker of the a3c network spent a fifth of its learning on that: 122 µs an
agent step where it keeps its memory, 153 where it does not (27 faults each).
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's ``mallopt`` (malloc.h)."""
KEPT = 1 << 29
"""Bytes that may lie free at the heap's end: more than any worker's peak."""
LARGEST = 1 << 25
"""Pieces larger than this are mapped, and unmapped, each on its own: the most that glibc lets one say."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, from now on; return whether its C library can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
