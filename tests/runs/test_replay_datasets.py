"""Recorded episodes as a Minari data set: read back by Minari itself, they are what was played."""

import json
from pathlib import Path

import minari
import numpy as np
import pytest
from recorded import make_run, record

from neurocoder.envs import make_vec
from neurocoder.runs.cli import main
from neurocoder.runs.replay.episode import RecordedEpisode


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data sets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    return folder


@pytest.mark.filterwarnings("ignore")  # Minari's own, about versions and paths
@pytest.mark.parametrize(("env", "shape"), [("ALE/Breakout-v5", (4, 84, 84)), ("CartPole-v1", (4,))])
def test_minari_reads_what_was_played(tmp_path: Path, root: Path, env: str, shape: tuple[int, ...]) -> None:
    run = make_run(tmp_path, env)
    folders = [record(run, seed, stuck_after=60) for seed in (3, 4)]
    assert main(["replay", "minari", "neurocoder/test-v0", str(run / "episodes")]) == 0
    data = minari.load_dataset("neurocoder/test-v0")
    recorded = [RecordedEpisode.open(folder) for folder in folders]
    assert data.total_episodes == 2 and data.total_steps == sum(e.info.length for e in recorded)
    assert data.observation_space.shape == shape
    for found, episode in zip(data.iterate_episodes(), recorded, strict=True):
        np.testing.assert_array_equal(found.actions, episode.trace["action"])
        np.testing.assert_allclose(found.rewards, episode.trace["reward"])
        ended = episode.info.ended == "terminated"
        assert not found.terminations[:-1].any() and not found.truncations[:-1].any()
        assert (found.terminations[-1], found.truncations[-1]) == (ended, not ended)
        envs = make_vec(env, 1)
        observation, _ = envs.reset(seed=[episode.info.seed])
        for step, action in enumerate(found.actions):
            np.testing.assert_array_equal(found.observations[step], observation[0])
            observation, *_, info = envs.step(np.array([action]))
        last = info["final_obs"][0] if info["_episode"][0] else observation[0]
        np.testing.assert_array_equal(found.observations[-1], last)
        envs.close()


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_a_data_set_is_refused(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record(make_run(tmp_path, "CartPole-v1"), 1)
    other = record(make_run(tmp_path, "Acrobot-v1", **{"policy.encoder": "mlp"}), 1, stuck_after=20)

    def refused(*arguments: str) -> str:
        assert main(["replay", "minari", *arguments]) in (1, 2)
        return capsys.readouterr().err

    assert "expected the name of a data set" in refused("no name", str(folder))
    assert "no recorded episode there" in refused("test/one-v0", str(tmp_path / "nowhere"))
    assert "is of another environment" in refused("test/one-v0", str(folder), str(other))
    assert main(["replay", "minari", "test/one-v0", str(folder)]) == 0
    assert "there is a data set of that name already" in refused("test/one-v0", str(folder))
    info = json.loads((folder / "episode.json").read_text())
    (folder / "episode.json").write_text(json.dumps({**info, "seed": 2}))
    assert "when it was recorded" in refused("test/two-v0", str(folder))
    assert [path.name for path in root.glob("test/*-v0")] == ["one-v0"]
