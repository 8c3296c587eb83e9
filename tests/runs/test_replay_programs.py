"""Maps of attention: means, lift, chapters, warnings, how it is stored; each against a slow loop or by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurocoder.policies import make_head
from neurocoder.runs.replay import programs
from neurocoder.runs.replay.episode import Trace
from neurocoder.runs.replay.programs import Chapter
from neurocoder.runs.replay.spool import TraceSpool


def test_the_mean_over_components_is_weighted_by_their_singular_values() -> None:
    rng = np.random.default_rng(0)
    attention, sigma = rng.random((5, 3, 4)), rng.random((5, 3)) + 0.1
    expected = np.zeros((5, 4))
    for t in range(5):
        for p in range(4):
            expected[t, p] = sum(sigma[t, r] * attention[t, r, p] for r in range(3)) / sum(sigma[t])
    mean = programs.mean_attention(torch.from_numpy(attention), torch.from_numpy(sigma))
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-12)


def test_what_is_kept_of_a_neurocoder_head() -> None:
    head = make_head("neurocoder", 6, 3, slots=7, attention_heads=2)
    with torch.no_grad():
        _, trace = head.forward_with_trace(torch.randn(4, 6))
    kept = programs.quantities({"actor": trace}, full=True)
    shapes = {name: array.shape for name, array in kept.items()}
    maps = {f"attention/actor/{memory}": (4, 7) for memory in "UVS"}
    components = {f"components/actor/{memory}": (4, 2, 7) for memory in "UVS"}
    assert shapes == {**maps, **components, "sigma/actor": (4, 2), "gate/actor": (4,)}
    np.testing.assert_array_equal(kept["components/actor/V"], trace.attention_v.numpy())
    expected = (trace.attention_s * trace.sigma[..., None]).sum(1) / trace.sigma.sum(1, keepdim=True)
    np.testing.assert_allclose(kept["attention/actor/S"], expected.numpy(), rtol=1e-5)
    assert not any(name.startswith("components") for name in programs.quantities({"actor": trace}))


@pytest.mark.parametrize("name", ["nsm", "moe"])
def test_a_mixture_has_one_memory(name: str) -> None:
    head = make_head(name, 6, 3).eval()
    with torch.no_grad():
        _, trace = head.forward_with_trace(torch.randn(4, 6))
    kept = programs.quantities({"critic": trace})
    assert list(kept) == ["attention/critic/P"]
    np.testing.assert_array_equal(kept["attention/critic/P"], trace.attention[:, 0].numpy())


def test_lift_is_attention_over_the_slots_own_mean() -> None:
    attention = np.array([[0.2, 0.8, 0.0], [0.4, 0.6, 0.0]], np.float32)
    np.testing.assert_allclose(programs.lift(attention), [[2 / 3, 8 / 7, 1], [4 / 3, 6 / 7, 1]], rtol=1e-6)


def made_of(*runs: tuple[int, int], slots: int = 4) -> np.ndarray:
    """Return attention in which `slot` leads for `length` steps, run by run; all slots have nearly the same mean."""
    leading = np.concatenate([np.full(length, slot) for slot, length in runs])
    attention = np.full((len(leading), slots), 0.25)
    counts = np.bincount(leading, minlength=slots)
    attention[np.arange(len(leading)), leading] += 0.05 * len(leading) / np.maximum(counts[leading], 1) / 10
    return attention


def test_chapters_begin_where_a_slot_leads_for_eight_steps() -> None:
    attention = made_of((2, 20), (1, 3), (2, 9), (0, 8), (3, 7), (1, 30))
    assert programs.chapters(attention) == [Chapter(0, 32, 2), Chapter(32, 47, 0), Chapter(47, 77, 1)]


def test_short_runs_at_the_start_belong_to_the_first_chapter() -> None:
    assert programs.chapters(made_of((1, 2), (3, 2), (0, 10))) == [Chapter(0, 14, 0)]


def test_without_a_long_run_the_most_frequent_leader_has_it_all() -> None:
    attention = made_of((1, 5), (2, 4), (1, 6), (3, 7))
    assert programs.chapters(attention) == [Chapter(0, 22, 1)]


def test_an_episode_of_nothing_has_no_chapters() -> None:
    assert programs.chapters(np.zeros((0, 4))) == []


def slow_chapters(leading: list[int], hold: int) -> list[tuple[int, int, int]]:
    """The definition, step by step."""
    current, begins = None, []
    for t in range(len(leading)):
        if leading[t : t + hold] == [leading[t]] * hold and leading[t] != current:
            current = leading[t]
            begins.append((t, current))
    if not begins:
        begins = [(0, max(sorted(set(leading)), key=leading.count))]
    begins[0] = (0, begins[0][1])
    ends = [t for t, _ in begins[1:]] + [len(leading)]
    return [(t, end, slot) for (t, slot), end in zip(begins, ends, strict=True)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=1, max_size=20), st.integers(1, 5))
def test_chapters_equal_their_definition(runs: list[tuple[int, int]], hold: int) -> None:
    leading = [slot for slot, length in runs for _ in range(length)]
    attention = np.ones((len(leading), 3))
    attention[np.arange(len(leading)), leading] = 100.0
    found = programs.lift(attention).argmax(axis=1).tolist()  # a slot that leads always has no lift
    assert [tuple(chapter) for chapter in programs.chapters(attention, hold)] == slow_chapters(found, hold)


def test_rows_are_ordered_by_the_steps_they_are_the_subject_of() -> None:
    attention = np.tile([0.1, 0.2, 0.3, 0.4], (50, 1))
    found = [Chapter(0, 10, 2), Chapter(10, 40, 0), Chapter(40, 50, 2)]
    assert programs.row_order(found, attention).tolist() == [0, 2, 3, 1]


def test_flat_attention_and_collapsed_attention_are_told() -> None:
    flat = np.full((9, 5), 0.2)
    flat[3, 2] = 0.2039
    assert "within 2% of uniform" in programs.warnings(flat)[0]
    flat[3, 2] = 0.206
    assert programs.warnings(flat) == []
    collapsed = np.full((9, 5), 0.01)
    collapsed[:, 3] = 0.96
    assert "slot 3 holds 96%" in programs.warnings(collapsed)[0]
    collapsed[:, 3] = 0.7
    assert programs.warnings(collapsed) == []
    # gates make the weights of a step sum to less than one: shares count, not sums
    assert "within 2%" in programs.warnings(np.full((9, 5), 0.07))[0]
    assert programs.warnings(np.ones((9, 1))) == [] and programs.warnings(np.zeros((0, 4))) == []


@pytest.mark.parametrize("spread", [0.001, 0.05, 1.0])
def test_levels_lose_less_than_they_say(spread: float) -> None:
    rng = np.random.default_rng(0)
    attention = (0.0125 * (1 + spread * rng.random((200, 80)))).astype(np.float32)
    quantized = programs.quantize(attention)
    assert quantized.codes.dtype == np.uint8
    mean, width = attention.mean(axis=0), np.ptp(attention, axis=0)
    allowed = np.maximum(0.005 * mean, width / 126) * 1.001
    assert (np.abs(quantized.restore() - attention) <= allowed).all()


def test_attention_comes_back_from_disk_in_its_order(tmp_path: Path) -> None:
    attention = np.random.default_rng(1).random((70, 9)).astype(np.float32)
    spool = TraceSpool(tmp_path / "spool")
    for row in attention:
        spool.add({"attention/actor/U": row})
    spool.pack(tmp_path / "trace.npz")
    found = Trace(tmp_path / "trace.npz", 70)["attention/actor/U"]
    np.testing.assert_array_equal(found, programs.quantize(attention).restore())
    spool.close()


def test_a_slot_that_is_never_read_stays_so() -> None:
    attention = np.zeros((5, 3), np.float32)
    attention[:, 1] = [0.1, 0.2, 0.3, 0.4, 0.5]
    restored = programs.quantize(attention).restore()
    assert not restored[:, [0, 2]].any()
    np.testing.assert_allclose(restored[:, 1], attention[:, 1], atol=0.4 / 126 + 1e-6)


def test_the_actors_first_memory_comes_first() -> None:
    names = ["reward", "attention/critic/U", "attention/actor/S", "attention/actor/U", "attention/actor/V"]
    expected = ["actor/U", "actor/V", "actor/S", "critic/U"]
    assert programs.maps(names) == [f"attention/{name}" for name in expected]
    assert programs.maps(["attention/q/V", "attention/q/U"])[0] == "attention/q/U"
    assert programs.maps(["reward"]) == []
