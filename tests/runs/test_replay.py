"""Recorded episodes: exact when played again, found out when altered, refused when damaged."""

import json
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import make_run, record

from neurocoder.agents.player import Decision, Player, Step, game_seeds
from neurocoder.envs import AtariCamera, AtariProtocol, EnvError
from neurocoder.errors import ConfigError
from neurocoder.policies.heads import HeadError
from neurocoder.runs.cli import main
from neurocoder.runs.config import resolve
from neurocoder.runs.preparation import environment_factory, prepare
from neurocoder.runs.replay import agents, emulation, recorder
from neurocoder.runs.replay.emulation import ReplayMismatch, render, verify
from neurocoder.runs.replay.episode import (
    EpisodeInfo,
    RecordedEpisode,
    ReplayError,
    Trace,
    checksums,
    find_episodes,
    read_info,
    write_info,
)
from neurocoder.runs.replay.frames import FrameWriter, read_strip
from neurocoder.runs.replay.picks import EvaluationRecorder
from neurocoder.runs.replay.spool import TraceSpool
from neurocoder.runs.replay.video import draw
from neurocoder.runs.run import Run
from neurocoder.runs.scoring import score_checkpoint

Capture = pytest.CaptureFixture[str]
STUCK = 64
"""Agent steps without a point in Pong: the episode of seed 7 is cut in its seventh block."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("recorded") / "logs")


@pytest.fixture(scope="module")
def pristine(run: Path) -> Path:
    return record(run, seed=7, stuck_after=STUCK)


@pytest.fixture
def episode(pristine: Path, tmp_path: Path) -> Path:
    """A copy to be altered."""
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


def alter_info(folder: Path, **values: object) -> None:
    file = folder / "episode.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), "utf-8")


def alter_trace(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    with np.load(folder / "trace.npz") as kept:
        arrays = dict(kept)
    change(arrays)
    np.savez_compressed(folder / "trace.npz", **arrays)


# ------------------------------------------------------------------------------------ what is recorded


def test_an_episode_is_what_was_played(run: Path, pristine: Path) -> None:
    """The recording equals a play by hand: same seed, same draws, one step after the other."""
    opened = RecordedEpisode.open(pristine)
    agent = agents.open_run(str(run), run.parent)
    game = agent.make_game()
    names = opened.trace.names
    assert {"action", "reward", "value", "logits", "boundary", "sigma/actor", "gate/critic"} <= set(names)
    played = 0
    for step, decided in zip(
        agent.make_player(7).play(game, [7], stuck_after=STUCK), range(10**6), strict=False
    ):
        if step.stuck[0] or step.info["_episode"][0]:
            played = decided + 1
            break
        assert step.decision.action[0] == opened.trace["action"][decided]
        assert step.decision.value[0].numpy() == opened.trace["value"][decided]
        assert step.reward[0] == opened.trace["reward"][decided]
    game.close()
    info = opened.info
    assert played == info.length > 128 and info.ended == "stuck"
    assert info.raw_return == opened.trace["reward"].sum()
    assert info.seed == 7 and info.source.checkpoint == 100 and info.protocol["sticky"] == 0.25
    assert info.action_names[0] == "NOOP" and info.chapters >= 1 and info.replayable
    assert len(read_strip(pristine, info, 0)) == 64 and info.frame_shape == (210, 160)


def test_pictures_are_the_emulators_own_before_every_step_and_at_the_end(pristine: Path) -> None:
    opened = RecordedEpisode.open(pristine)
    info = opened.info
    camera = AtariCamera(info.env, AtariProtocol(**info.protocol))
    expected = [camera.start(info.seed, 0)] + [camera.step(int(a)) for a in opened.trace["action"]]
    strips = -(-info.n_frames // info.per_strip)
    stored = np.concatenate([read_strip(pristine, info, n) for n in range(strips)])
    np.testing.assert_array_equal(stored, expected)


def test_what_the_programs_did_is_kept(run: Path, pristine: Path) -> None:
    trace = RecordedEpisode.open(pristine).trace
    steps = len(trace["action"])
    for name in ("attention/actor/U", "attention/critic/S"):
        assert trace[name].shape == (steps, 8)
    np.testing.assert_allclose(trace["attention/actor/U"].sum(axis=1), 0.5, atol=0.3)  # gated softmax
    assert trace["sigma/actor"].shape == (steps, 4) and trace["sigma/critic"].shape == (steps, 4)
    assert not any(name.startswith("components") for name in trace.names)


def test_a_full_trace_keeps_every_component(run: Path, tmp_path: Path) -> None:
    agent = agents.open_run(str(run), run.parent)
    game = agent.make_game()
    recording = recorder.Recording(stuck_after=20, full=True)
    recorder.record_episode(agent.make_player(1), game, tmp_path / "full", agent.info(1), recording)
    game.close()
    trace = RecordedEpisode.open(tmp_path / "full").trace
    components, sigma = (
        trace["components/actor/V"].astype(np.float64),
        trace["sigma/actor"].astype(np.float64),
    )
    mean = (components * sigma[..., None]).sum(axis=1) / sigma.sum(axis=1, keepdims=True)
    allowed = np.maximum(0.005 * mean.mean(axis=0), np.ptp(mean, axis=0) / 126) + 2e-4  # of 16 bits
    assert (np.abs(trace["attention/actor/V"] - mean) <= allowed).all()


GAMES = [
    "Pong",
    "Breakout",
    "MsPacman",
    "SpaceInvaders",
    "Seaquest",
    "Freeway",
    "Qbert",
    "MontezumaRevenge",
    "BeamRider",
    "Frostbite",
]


@pytest.mark.parametrize("game", GAMES)
def test_every_game_is_exact_with_sticky_actions(game: str, tmp_path: Path) -> None:
    folder = record(make_run(tmp_path, f"ALE/{game}-v5"), seed=3, stuck_after=60)
    opened = RecordedEpisode.open(folder)
    assert opened.info.protocol["sticky"] == 0.25
    assert verify(opened).startswith(f"exact: {opened.info.length:,} steps")


@pytest.mark.parametrize("preset", ["dqn2015", "neurocoder2020"])
def test_every_preset_is_exact(preset: str, tmp_path: Path) -> None:
    folder = record(make_run(tmp_path, "ALE/Breakout-v5", preset=preset), seed=3, stuck_after=80)
    opened = RecordedEpisode.open(folder)
    assert opened.info.start_frames > 0 and verify(opened).startswith("exact")
    assert opened.trace["boundary"].any()  # lives lost end training episodes, and not the game


def test_other_environments_are_exact_too(tmp_path: Path) -> None:
    folder = record(make_run(tmp_path, "Pendulum-v1"), seed=3, stuck_after=0)
    opened = RecordedEpisode.open(folder)
    assert opened.trace["action"].shape == (200, 1) and opened.trace["action"].dtype == np.float32
    assert opened.info.ended == "truncated" and opened.info.protocol is None
    assert verify(opened).startswith("exact: 200 steps, 201 pictures")


def test_the_same_seed_gives_the_same_episode(run: Path, tmp_path: Path, pristine: Path) -> None:
    again = record(
        Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("episodes"))), 7, STUCK
    )
    first, second = read_info(pristine), read_info(again)
    assert replace(second, recorded="", source=first.source) == replace(first, recorded="")


def test_long_episodes_do_not_need_more_memory(tmp_path: Path) -> None:
    """A picture that was written is not held, nor is a row."""
    spool, frames = TraceSpool(tmp_path / "spool"), FrameWriter(tmp_path / "frames")
    for step in range(200):
        spool.add({"reward": np.float32(step) * np.ones((), np.float32)})
        frames.add(np.full((210, 160, 3), step, np.uint8))
        assert len(frames._strip) < 64
    assert isinstance(spool["reward"], np.memmap)
    np.testing.assert_array_equal(spool["reward"], np.arange(200, dtype=np.float32))
    spool.close()
    assert not (tmp_path / "spool").exists()


def test_a_recording_that_breaks_off_leaves_nothing(run: Path, tmp_path: Path) -> None:
    agent = agents.open_run(str(run), run.parent)
    game = agent.make_game()

    class Broken(Player):
        def _decide(self, *arguments):
            self.left = getattr(self, "left", 70) - 1
            if not self.left:
                raise RuntimeError("out of luck")
            return super()._decide(*arguments)

    player = Broken(agent.make_player(1).policy)
    with pytest.raises(RuntimeError, match="luck"):
        recorder.record_episode(player, game, tmp_path / "x", agent.info(1), recorder.Recording())
    game.close()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_recording_left_is_swept_away(run: Path, tmp_path: Path) -> None:
    part = tmp_path / ".x.part"
    (part / "spool").mkdir(parents=True)
    (part / "spool" / "0.rows").write_bytes(b"old")
    with recorder.EpisodeWriter(tmp_path / "x"):
        assert not (part / "spool" / "0.rows").exists()
    assert not part.exists()


def test_names_that_are_taken_get_a_number(tmp_path: Path) -> None:
    assert recorder.free_name(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert recorder.free_name(tmp_path, "a") == tmp_path / "a-3"


# ----------------------------------------------------------------------------------------- masked slots


def test_a_masked_slot_is_never_read(run: Path) -> None:
    folder = record(run, 7, masked=["3", "critic:5"])
    assert folder.name == "100-7-without-actor3-without-critic5"
    trace = RecordedEpisode.open(folder).trace
    for memory in "UVS":
        assert not trace[f"attention/actor/{memory}"][:, 3].any()
        assert not trace[f"attention/critic/{memory}"][:, 5].any()
        assert trace[f"attention/actor/{memory}"][:, 5].all()
    assert read_info(folder).masked == ["actor:3", "critic:5"]
    assert verify(RecordedEpisode.open(folder)).startswith("exact")


def test_what_a_mask_leaves_is_a_smaller_memory() -> None:
    """Masking equals a softmax over the other slots."""
    from neurocoder.policies import make_head

    torch.manual_seed(0)
    head = make_head("neurocoder", 6, 3, slots=8).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    pruned = make_head("neurocoder", 6, 3, slots=8).double()
    pruned.load_state_dict(head.state_dict())
    head.mask([2, 6])
    pruned.prune([0, 1, 3, 4, 5, 7])
    torch.testing.assert_close(head(x), pruned(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(HeadError, match=r"slots in \[0, 8\)"):
        head.mask([8])
    with pytest.raises(HeadError, match="leaves no slot"):
        head.mask(range(8))


@pytest.mark.parametrize("slot", ["x", "value:3", "actor:-1", "actor:", "1.5"])
def test_a_slot_that_is_written_wrongly_is_refused(run: Path, slot: str) -> None:
    with pytest.raises(ConfigError, match="expected a number, actor:NUMBER or critic:NUMBER"):
        agents.open_run(str(run), run.parent, masked=[slot])


def test_a_head_without_slots_cannot_be_masked() -> None:
    _, policy = prepare(resolve("CartPole-v1", None, {"policy.head": "linear"}, "test"))
    with pytest.raises(ConfigError, match="this actor is 'linear'"):
        agents.mask(policy, "3")


# --------------------------------------------------------------------------------------- what is altered


def test_an_altered_action_is_named_by_its_block(episode: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["action"][70] = (arrays["action"][70] + 1) % 6

    alter_trace(episode, change)
    with pytest.raises(ReplayMismatch, match=r"block 1 \(steps 64–\d+\): its actions"):
        verify(RecordedEpisode.open(episode))


def test_an_altered_picture_is_named_by_its_block(episode: Path) -> None:
    info = read_info(episode)
    strip = read_strip(episode, info, 1).copy()
    strip[5, 100, 80, 1] ^= 1
    Image.fromarray(strip.reshape(-1, 160, 3)).save(
        episode / "frames" / "001.webp", lossless=True, exact=True
    )
    with pytest.raises(ReplayMismatch, match=r"block 1 \(steps 64–\d+\): its pictures"):
        verify(RecordedEpisode.open(episode))
    assert render(RecordedEpisode.open(episode)) == info.n_frames
    assert verify(RecordedEpisode.open(episode)).startswith("exact")


def test_actions_altered_with_their_checksum_show_in_the_game(episode: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["action"][70:] = 2

    alter_trace(episode, change)
    crcs = checksums(Trace(episode / "trace.npz", read_info(episode).length)["action"])
    alter_info(episode, action_crcs=crcs)
    with pytest.raises(ReplayMismatch, match=r"block 1 \(steps 64–127\): played again, it looks"):
        verify(RecordedEpisode.open(episode))
    before = (episode / "frames" / "001.webp").read_bytes()
    with pytest.raises(ReplayMismatch, match="looks otherwise"):
        render(RecordedEpisode.open(episode))
    assert (episode / "frames" / "001.webp").read_bytes() == before
    assert not list(episode.glob(".*"))


def test_another_seed_shows_and_another_version_is_named(episode: Path) -> None:
    alter_info(episode, seed=8, versions={"ale-py": "0.11.0"})
    with pytest.raises(ReplayMismatch, match=r"recorded with ale-py 0\.11\.0, this is "):
        verify(RecordedEpisode.open(episode))


def test_an_altered_reward_is_found(episode: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["reward"][66] += 1

    alter_trace(episode, change)
    with pytest.raises(ReplayMismatch, match="block 1: step 66 brings a reward of"):
        verify(RecordedEpisode.open(episode))


def test_an_episode_that_goes_on_is_found(episode: Path) -> None:
    alter_info(episode, ended="terminated")
    with pytest.raises(ReplayMismatch, match="does not end after"):
        verify(RecordedEpisode.open(episode))


def test_pictures_are_made_anew(episode: Path, pristine: Path) -> None:
    shutil.rmtree(episode / "frames")
    with pytest.raises(ReplayError, match=r"000\.webp: missing; neurocoder replay render"):
        verify(RecordedEpisode.open(episode))
    render(RecordedEpisode.open(episode))
    for file in (pristine / "frames").iterdir():
        assert (episode / "frames" / file.name).read_bytes() == file.read_bytes()


def test_what_is_not_deterministic_says_so(episode: Path) -> None:
    alter_info(episode, replayable=False)
    assert "cannot be played again" in verify(RecordedEpisode.open(episode))
    with pytest.raises(ReplayError, match="cannot be made from seed and actions"):
        render(RecordedEpisode.open(episode))


# --------------------------------------------------------------------------------------- what is damaged


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 99}, "schema 99, this version reads 1"),
        ({"schema": None}, "schema None"),
        ({"length": 0}, "length 0"),
        ({"length": 10**9}, "length 1000000000"),
        ({"length": "many"}, "length"),
        ({"ended": "exploded"}, "ended 'exploded'"),
        ({"action_crcs": [1]}, "1 action checksums"),
        ({"frame_crcs": []}, "0 frame checksums"),
        ({"frame_shape": [10**6, 10**6]}, "frame_shape"),
        ({"per_strip": 0}, "per_strip 0"),
        ({"block": 1}, "block"),
        ({"source": 3}, "source"),
    ],
)
def test_impossible_values_are_refused_by_name(episode: Path, values: dict, message: str) -> None:
    alter_info(episode, **values)
    with pytest.raises(ReplayError, match=message) as error:
        RecordedEpisode.open(episode)
    assert "episode.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "\x00"])
def test_what_is_no_json_is_refused(episode: Path, text: str) -> None:
    (episode / "episode.json").write_text(text, "utf-8")
    with pytest.raises(ReplayError, match=r"episode\.json"):
        RecordedEpisode.open(episode)


def test_a_folder_without_an_episode_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"no episode\.json there"):
        RecordedEpisode.open(tmp_path)


def test_a_truncated_trace_is_refused(episode: Path) -> None:
    data = (episode / "trace.npz").read_bytes()
    for size in (0, 100, len(data) // 2, len(data) - 30):
        (episode / "trace.npz").write_bytes(data[:size])
        with pytest.raises(ReplayError, match=r"trace\.npz: damaged .*; record the episode again"):
            RecordedEpisode.open(episode)


def test_a_flipped_byte_is_found(episode: Path) -> None:
    with zipfile.ZipFile(episode / "trace.npz") as archive:
        offset = archive.getinfo("value.npy").header_offset
    data = bytearray((episode / "trace.npz").read_bytes())
    data[offset + 200] ^= 0xFF
    (episode / "trace.npz").write_bytes(data)
    with pytest.raises(ReplayError, match="value is damaged"):
        RecordedEpisode.open(episode).trace["value"]


def npy(shape: str, descr: str = "<f4", body: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize(
    "member",
    [
        npy("(1000000000000,)"),  # four terabytes, it says
        npy("(LENGTH, 1000000000)"),
        npy("(LENGTH,)"),  # and no content
        npy("(LENGTH,)", "|O", b"cos\nsystem\n(S'echo gotcha'\ntR."),
        npy("()"),
        b"",
        b"PK\x03\x04",
    ],
    ids=["long", "wide", "empty", "pickle", "scalar", "nothing", "no-array"],
)
def test_an_array_that_lies_about_itself_is_refused(episode: Path, member: bytes) -> None:
    length = read_info(episode).length
    with zipfile.ZipFile(episode / "trace.npz", "w") as archive:
        archive.writestr("value.npy", member.replace(b"LENGTH", str(length).encode()))
    with pytest.raises(ReplayError, match="value is damaged"):
        Trace(episode / "trace.npz", length)["value"]


def test_a_bomb_is_not_unpacked(episode: Path) -> None:
    """A member that unpacks to gigabytes is read no further than its array should be long."""
    length = read_info(episode).length
    with zipfile.ZipFile(episode / "trace.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("value.npy", npy(f"({length},)", body=bytes(200 << 20)))
    with pytest.raises(ReplayError, match="expected"):
        Trace(episode / "trace.npz", length)["value"]


def test_a_missing_array_is_named(episode: Path) -> None:
    alter_trace(episode, lambda arrays: arrays.pop("reward"))
    with pytest.raises(ReplayError, match="holds no 'reward'"):
        verify(RecordedEpisode.open(episode))


def test_a_corrupt_strip_is_named(episode: Path) -> None:
    file = episode / "frames" / "000.webp"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ReplayError, match=r"000\.webp: damaged"):
        verify(RecordedEpisode.open(episode))
    file.write_text("not a picture")
    with pytest.raises(ReplayError, match=r"000\.webp: damaged"):
        verify(RecordedEpisode.open(episode))


def test_a_picture_that_claims_to_be_huge_is_not_decoded(episode: Path, monkeypatch) -> None:
    file = episode / "frames" / "000.webp"
    data = bytearray(file.read_bytes())
    at = data.index(b"VP8L") + 9  # 14 bits of width - 1, 14 of height - 1
    data[at : at + 4] = struct.pack("<I", 8999 | 8999 << 14)
    file.write_bytes(data)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ReplayError, match=r"claims 9000 × 9000 pixels, expected 160 × 13440"):
        read_strip(episode, read_info(episode), 0)


def test_actions_that_the_game_does_not_have_are_refused(episode: Path) -> None:
    info = read_info(episode)
    for action in (6, -1):
        with pytest.raises(ReplayError, match=r"action -?\d is not one of the 6"):
            list(emulation.emulate(info, np.array([0, action])))


def test_a_protocol_of_another_version_is_refused(episode: Path) -> None:
    info = read_info(episode)
    for change in ({"gravity": 2}, {"sticky": 7}):
        with pytest.raises(ReplayError, match="not one of this version"):
            next(emulation.emulate(replace(info, protocol={**info.protocol, **change}), np.array([0])))


def test_a_missing_rom_says_so(episode: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ale_py.roms.get_rom_path", lambda _: None)
    with pytest.raises(EnvError, match="ROM is missing"):
        verify(RecordedEpisode.open(episode))


def test_a_module_is_not_imported(episode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gotcha.py").write_text("raise SystemExit('gotcha')")
    monkeypatch.syspath_prepend(tmp_path)
    alter_info(episode, env="gotcha:CartPole-v1", protocol=None)
    with pytest.raises(EnvError, match="--trust"):
        verify(RecordedEpisode.open(episode))


def test_episodes_are_found_and_links_are_not_followed(episode: Path, pristine: Path) -> None:
    logs = episode.parent
    (logs / "link").symlink_to(pristine.parent, target_is_directory=True)
    (logs / ".hidden.part").mkdir()
    (logs / ".hidden.part" / "episode.json").write_text("{}")
    assert list(find_episodes(logs)) == [episode]
    assert list(find_episodes(episode)) == [episode]


def test_what_was_written_is_read(tmp_path: Path, pristine: Path) -> None:
    info = read_info(pristine)
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info and isinstance(info, EpisodeInfo)


def test_checksums_are_crc32_of_little_endian_blocks() -> None:
    rows = np.arange(130, dtype=np.int64)
    expected = [
        zlib.crc32(b"".join(int(v).to_bytes(8, "little") for v in rows[i : i + 64])) for i in (0, 64, 128)
    ]
    assert checksums(rows) == checksums(rows.astype(">i8")) == expected


# ------------------------------------------------------------------------------------------ commands


def refused(capsys: Capture, *arguments: str, code: int = 2) -> str:
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("neurocoder: ") and captured.err.count("\n") == 1
    return captured.err


def test_episodes_are_recorded_checked_and_rendered(run: Path, tmp_path: Path, capsys: Capture) -> None:
    logs = tmp_path / "logs"
    copied = shutil.copytree(run, logs / "ALE-Pong-v5" / "a", ignore=shutil.ignore_patterns("episodes"))
    flags = ["--episodes", "2", "--seed", "4", "--stuck-after", "40", "--logs", str(logs)]
    assert main(["record", "ALE-Pong-v5/a", *flags]) == 0
    out = capsys.readouterr().out
    assert "episodes/100-4  return" in out and "episodes/100-5  return" in out and "neurocoder watch" in out
    assert main(["record", "ALE-Pong-v5/a", *flags[2:], "--deterministic", "--mask-slot", "2"]) == 0
    names = {folder.name for folder in (copied / "episodes").iterdir()}
    assert names == {"100-4", "100-5", "100-4-deterministic-without-actor2"}
    assert main(["replay", "verify", str(logs)]) == 0
    assert capsys.readouterr().out.count("exact:") == 3
    shutil.rmtree(copied / "episodes" / "100-4" / "frames")
    assert main(["replay", "render", str(copied / "episodes" / "100-4")]) == 0
    alter_info(copied / "episodes" / "100-4", seed=5)
    assert "block 0" in refused(capsys, "replay", "verify", str(logs), code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["record", "RUN", "--episodes", "0"], "--episodes=0 must be >= 1"),
        (["record", "RUN", "--seed", "-1"], "--seed=-1"),
        (["record", "RUN", "--stuck-after", "-1"], "--stuck-after"),
        (["record", "RUN", "--checkpoint", "99"], "99"),
        (["record", "RUN", "--mask-slot", "9"], r"slots in [0, 8)"),
        (["record", "RUN", "--env", "ALE/Pong-v5"], "--env and --preset are for zips"),
        (["record", "nothing"], "not a run"),
        (["record", "nothing.zip"], "no such file"),
        (["record", "nothing.zip", "--mask-slot", "3"], "are for runs"),
        (["replay", "verify"], "expected folders"),
        (["replay", "verify", "TMP"], "no recorded episode there"),
        (["replay", "export", "TMP", "x.html"], "no episode.json there"),
        (["replay", "export", "TMP", "x.avi"], "expected a file that ends in .html, .mp4, .gif"),
        (["replay", "export", "TMP", "TMP/no/x.html"], "there is no folder"),
        (["replay", "export", "TMP", "x.gif", "--second", "TMP"], "compared in .html only"),
        (["watch", "TMP/no"], "no such folder"),
        (["watch", "TMP", "--port", "70000"], "--port=70000"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = [text.replace("RUN", str(run)).replace("TMP", str(tmp_path)) for text in arguments]
    assert message in refused(capsys, *given, *(["--logs", str(tmp_path)] if given[0] == "record" else []))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_films_show_every_picture(ending: str, run: Path, tmp_path: Path, capsys: Capture) -> None:
    import imageio_ffmpeg

    episode = record(run, seed=11, stuck_after=30)
    film = tmp_path / f"film{ending}"
    assert main(["replay", "export", str(episode), str(film)]) == 0
    read = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", film, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(read, capture_output=True, check=True).stdout
    height, width = next(draw(RecordedEpisode.open(episode))).shape[:2]
    shown = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    info = read_info(episode)
    assert len(shown) == info.n_frames
    game = shown[20][: 2 * 210 : 2, : 2 * 160 : 2].astype(int)
    expected = read_strip(episode, info, 0)[20].astype(int)
    assert np.abs(game - expected).mean() < 8  # video loses a little
    assert shown[20][:, 2 * 160 :].max() > 150  # something is written beside it
    assert [path.name for path in tmp_path.iterdir()] == [film.name]
    shutil.rmtree(episode)


def test_an_episode_without_pictures_cannot_be_a_film(episode: Path, tmp_path: Path, capsys: Capture) -> None:
    alter_info(episode, frame_shape=None, frame_crcs=[], per_strip=0)
    assert "has no pictures" in refused(capsys, "replay", "export", str(episode), str(tmp_path / "x.mp4"))


def test_numbers_that_the_environment_tells_are_kept() -> None:
    step = Step(
        np.zeros((1, 2)),
        Decision(torch.tensor([[2.0, -3.0]])),
        np.array([[1.0, -1.0]]),
        np.array([1.5]),
        np.array([False]),
        np.array([False]),
        np.array([False]),
        {"_episode": np.array([False]), "target": np.array([[0, 1]])},
        {"target": np.array([[1, 0]]), "mask": np.array(["x"])},
    )
    rows = recorder.rows_of(step)
    assert rows["action"].dtype == np.float64 and rows["action"].tolist() == [[1.0, -1.0]]
    assert rows["info/target"].tolist() == [[1, 0]] and "info/mask" not in rows


# --------------------------------------------------------------------------------- while a run trains


def test_an_evaluation_keeps_its_best_median_and_worst_game(tmp_path: Path) -> None:
    run = make_run(tmp_path, "ALE/Breakout-v5", **{"evaluation.episodes": 5, "evaluation.stuck_after": 60})
    config = Run.open(str(run), tmp_path).config()
    checkpoint = run / "checkpoints" / "100"
    seeds = game_seeds(3, 5)
    with EvaluationRecorder(agents.agent_of(run, checkpoint, config), seeds) as watch:
        score = score_checkpoint(
            checkpoint,
            config,
            config.evaluation,
            environment_factory(config),
            seed=3,
            source="test",
            watch=watch,
        )
        kept = watch.keep()
    returns = score["returns"]
    found = {read_info(folder).picked: read_info(folder) for folder in kept}
    expected = {"best": max(returns), "median": sorted(returns)[2], "worst": min(returns)}
    assert {pick: info.raw_return for pick, info in found.items()} == {p: expected[p] for p in found}
    assert {"best", "worst"} <= set(found) and len({info.seed for info in found.values()}) == len(found)
    for folder in kept:
        info = read_info(folder)
        game = seeds.index(info.seed)
        assert (info.length, info.raw_return) == (score["lengths"][game], returns[game])
        assert verify(RecordedEpisode.open(folder)).startswith("exact")
    assert sorted(path.name for path in (run / "episodes").iterdir()) == sorted(f.name for f in kept)


def test_a_training_records_its_evaluations(tmp_path: Path, capsys: Capture) -> None:
    logs = tmp_path / "logs"
    flags = ["--steps", "192", "--workers", "1", "--envs-per-worker", "2", "--logs", str(logs)]
    small = {
        "a3c.n_steps": 16,
        "checkpoint_every": 64,
        "policy.head_config.slots": 8,
        "evaluation.every": 64,
        "evaluation.episodes": 3,
    }
    for name, value in small.items():
        flags += ["--set", f"{name}={value}"]
    assert main(["train", "CartPole-v1", "--record-every", "64", *flags]) == 0
    episodes = list(find_episodes(logs))
    assert {read_info(folder).picked for folder in episodes} <= {"best", "median", "worst"}
    assert len({read_info(folder).source.checkpoint for folder in episodes}) >= 1
    assert main(["replay", "verify", str(logs)]) == 0


def test_a_full_disk_costs_the_recording_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "CartPole-v1", **{"evaluation.episodes": 2})
    config = Run.open(str(run), tmp_path).config()
    checkpoint = run / "checkpoints" / "100"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TraceSpool, "add", full)
    with EvaluationRecorder(agents.agent_of(run, checkpoint, config), game_seeds(3, 2)) as watch:
        score_checkpoint(
            checkpoint,
            config,
            config.evaluation,
            environment_factory(config),
            seed=3,
            source="test",
            watch=watch,
        )
        with pytest.raises(OSError, match="No space"):
            watch.keep()
    assert not list((run / "episodes").iterdir())
