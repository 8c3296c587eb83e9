"""What a Turing machine begins with: its memory, and what its heads do before they have learned."""

import math

import pytest
import torch

from neurocoder.errors import ConfigError
from neurocoder.policies.cores import make_core
from neurocoder.policies.ntm.addressing import HeadSizes, head_parameters
from neurocoder.policies.ntm.beginnings import FIRST_HEADS, first_biases

SIZES = HeadSizes(read_heads=2, write_heads=1, width=5, shift_range=2)
SAID = {"strength": 10.0, "gate": 0.95, "stay": 0.9, "sharpening": 3.5, "erase": 0.02}


def test_positions_are_sines_and_cosines():
    memory = make_core("ntm", 3, 4, rows=50, width=7, memory_init="positions").initial_state(1)[0][0]
    for n in range(50):
        for column in range(7):
            angle = n / 10000 ** (2 * (column // 2) / 7)
            expected = (math.sin(angle) if column % 2 == 0 else math.cos(angle)) / math.sqrt(2)
            assert memory[n, column].item() == pytest.approx(expected, abs=1e-6)
    memory = make_core("ntm", 3, 4, rows=50, memory_init="positions").initial_state(1)[0][0]
    likeness = (memory @ memory.T).fill_diagonal_(0)  # rows are of one length
    assert (likeness.argmax(1) - torch.arange(50)).abs().eq(1).all()  # to those next to them


def test_binary_rows_are_their_numbers():
    memory = make_core("ntm", 3, 4, rows=130, width=9, memory_init="binary").initial_state(1)[0][0]
    for n in (0, 1, 5, 77, 127):
        assert sum(2**bit * (memory[n, bit].item() + 0.5) for bit in range(7)) == n
    assert memory[:, :7].abs().eq(0.5).all() and memory[:, 7:].eq(0).all()
    assert len(memory[:128].unique(dim=0)) == 128 and memory[128].equal(memory[0])
    narrow = make_core("ntm", 3, 4, rows=9, width=2, memory_init="binary").initial_state(1)[0][0]
    assert narrow[:4].tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]


def test_first_heads_do_what_is_said():
    heads = head_parameters(first_biases(SAID, SIZES).double(), SIZES)
    for name, value in SAID.items():
        if name != "stay":
            torch.testing.assert_close(getattr(heads, name), torch.full_like(getattr(heads, name), value))
    others = 0.1 / 4
    expected = torch.tensor([others, others, 0.9, others, others]).expand(3, 5)
    torch.testing.assert_close(heads.shift, expected.double())
    assert not heads.key.any() and not heads.add.any()


@pytest.mark.parametrize("name", FIRST_HEADS)
def test_what_is_not_said_of_first_heads_is_as_before(name):
    said, silent = (head_parameters(first_biases(heads, SIZES), SIZES) for heads in ({name: SAID[name]}, {}))
    changed = {field for field in said._fields if not getattr(said, field).equal(getattr(silent, field))}
    assert changed == {"shift" if name == "stay" else name}


def test_extremes_are_finite():
    for heads in ({"strength": 1e-9, "sharpening": 1 + 1e-9}, {"strength": 500.0, "sharpening": 500.0}):
        found = head_parameters(first_biases(heads, SIZES).double(), SIZES)
        assert found.strength[0].item() == pytest.approx(heads["strength"], rel=1e-6)
        assert found.sharpening[0].item() == pytest.approx(heads["sharpening"], rel=1e-6)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_a_machine_begins_with_first_heads(controller):
    torch.manual_seed(0)
    core = make_core("ntm", 3, 4, rows=9, controller=controller, first_heads={"gate": 0.95, "erase": 0.02})
    with torch.no_grad():
        core.head.layer.weight.zero_()
    start = torch.ones(1, dtype=torch.bool)
    *_, trace = core.forward_with_trace(torch.randn(1, 3), core.initial_state(1), start)
    torch.testing.assert_close(trace.heads.gate, torch.full((1, 2), 0.95))
    torch.testing.assert_close(trace.heads.erase, torch.full((1, 1, 20), 0.02))


def test_a_little_erased_leaves_addresses():
    """What the option is for: half of every row that is attended to is gone with each step of a machine without it."""
    left = {}
    for erase in (0.5, 0.02):
        torch.manual_seed(0)
        core = make_core("ntm", 3, 4, rows=8, memory_init="binary", first_heads={"erase": erase})
        with torch.no_grad():
            core.head.layer.weight.zero_()
            state = core.initial_state(1)
            _, (memory, *_) = core(torch.zeros(50, 1, 3), state, torch.zeros(50, 1, dtype=torch.bool))
        left[erase] = (memory.norm() / state[0].norm()).item()
    assert left[0.5] < 0.1 and left[0.02] > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_heads": {"strenght": 3.0}}, "did you mean 'strength'?"),
        ({"first_heads": {"gate": 1}}, "first_heads.gate=1 must be a number above 0 and below 1"),
        ({"first_heads": {"gate": "0.5"}}, "first_heads.gate='0.5' must be a number"),
        ({"first_heads": {"strength": math.inf}}, "first_heads.strength=inf must be a number above 0"),
        ({"first_heads": {"sharpening": 1.0}}, "first_heads.sharpening=1.0 must be a number above 1"),
        ({"first_heads": {"erase": math.nan}}, "first_heads.erase=nan must be"),
        (
            {"first_heads": {"stay": 0.9}, "shift_range": 0},
            "first_heads.stay has no meaning with shift_range=0",
        ),
        (
            {"first_heads": {"gate": 0.9}, "head": "nsm", "head_config": {"programs": 2}},
            "they need head='linear'",
        ),
    ],
)
def test_first_heads_that_cannot_be_are_said(options, message):
    with pytest.raises(ConfigError) as caught:
        make_core("ntm", 3, 4, **options)
    assert message in str(caught.value)
