"""What ``tests/mutants.py`` changes is there to be changed, and the tests that must go red are there to do so."""

import pytest
from mutants import MUTANTS, ROOT, Mutant, suite_of


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.old.strip()[:40]}")
def test_no_mutant_is_stale(mutant: Mutant):
    assert (ROOT / mutant.file).read_text("utf-8").count(mutant.old) == 1
    assert (ROOT / suite_of(mutant)).is_file()
