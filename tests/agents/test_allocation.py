"""What a worker frees stays its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
import torch
from neurocoder.agents.allocation import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = resident()
parts = [torch.ones(4 << 20) for _ in range(4)]  # 64 MiB
held = resident() - before
parts.clear()
print(held, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's own way")
@pytest.mark.parametrize("mode", ["kept", "given back"])
def test_freed_memory_stays_with_the_process_that_asked_for_it(mode):
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    held, left = map(float, done.stdout.split())
    assert 60 < held < 80
    assert left > 60 if mode == "kept" else left < 10
