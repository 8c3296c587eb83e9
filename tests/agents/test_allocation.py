"""What a worker frees it gets back without the system's help."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from neurocoder.agents.allocation import LARGEST, keep_freed_memory

assert keep_freed_memory()

def faults(*sizes):
    def update():
        for part in [torch.ones(size // 4) for size in sizes]:
            part += 1

    update(), update(), update()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    update()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(*[LARGEST // 2] * 4), faults(LARGEST * 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's own way")
def test_no_page_is_fetched_twice_but_of_pieces_that_are_too_large():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept, mapped = map(int, done.stdout.split())
    assert kept < 20 <= mapped
