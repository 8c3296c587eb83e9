"""Features of a data set: what the encoder says of each image, standardised, found again by name, refused if damaged."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from safetensors.numpy import load_file, save_file

from neurocoder.envs import make_tasks
from neurocoder.envs.datasets import load_dataset
from neurocoder.envs.downloads import DataError
from neurocoder.policies.encoders import make_encoder
from neurocoder.runs.cli import main
from neurocoder.runs.features import compute_features, enlarged

OPTIONS = {"hidden": [6], "activation": "relu"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROCODER_DATA", str(tmp_path))
    torch.manual_seed(0)
    return compute_features("digits", "mlp", 8, OPTIONS)


def test_they_are_the_encoders_and_standardised(folder):
    torch.manual_seed(0)
    encoder = make_encoder("mlp", (1, 8, 8), True, **OPTIONS)
    train, test = (load_dataset("digits", split) for split in ("train", "test"))
    with torch.no_grad():
        raw, other = (encoder(torch.tensor(data.images)).numpy() for data in (train, test))
    stored = load_file(folder / "train.safetensors")["features"].astype(np.float32)
    np.testing.assert_allclose(stored.mean(axis=0), 0, atol=1e-2)
    deviation = np.where(raw.std(axis=0) < 1e-6, 1, raw.std(axis=0))
    shown = make_tasks("neurocoder/Digits-v0", 7, {"features": "mlp-8", "split": "test", "shuffle": False})
    observation, info = shown.reset(seed=0)
    expected = (other[:7] - raw.mean(axis=0)) / deviation
    np.testing.assert_allclose(observation, expected, rtol=2e-3, atol=2e-3)
    assert info["target"].tolist() == test.labels[:7].tolist()
    assert "mlp at 8 x 8" in shown.task.provenance


def test_every_kind_of_task_shows_them(folder):
    for name in ("neurocoder/Digits-v0", "neurocoder/SplitDigits-v0"):
        env = gym.make(name, features="mlp-8")
        assert env.observation_space.shape == (6,)
        check_env(env.unwrapped, skip_render_check=True)


def test_enlarged_pictures_are_the_same_pictures():
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    np.testing.assert_array_equal(enlarged(images, 4), images)
    large = enlarged(images, 8)
    assert large.shape == (2, 3, 8, 8)
    for channel in range(3):
        assert large[1, channel].mean() == pytest.approx(images[1, channel].mean(), abs=1)
    grey = enlarged(images[:, :1], 8)
    np.testing.assert_array_equal(grey[:, 0], large[:, 0])


def test_damaged_ones_are_named_and_not_used(folder):
    file = folder / "train.safetensors"
    values = load_file(file)["features"]
    for wrong, message in (
        (values[:-1], "no features of 1442 images"),
        (values.astype(np.int16), "I16"),
        (np.where(values == values[0, 0], np.float16(np.nan), values), "not finite"),
    ):
        save_file({"features": wrong}, file)
        with pytest.raises(DataError, match=message):
            make_tasks("neurocoder/Digits-v0", 4, {"features": "mlp-8"})
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged"):
        make_tasks("neurocoder/Digits-v0", 4, {"features": "mlp-8"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "none-1"}, "neurocoder features digits"),
        ({"features": "../secret"}, "expected a name"),
        ({"features": "mlp-8", "pad": 2}, "leave out pad"),
    ],
)
def test_bad_names_are_refused(folder, options, message):
    with pytest.raises(Exception, match=message):
        make_tasks("neurocoder/Digits-v0", 4, options)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NEUROCODER_DATA", str(tmp_path))
    arguments = ["features", "digits", "--encoder", "mlp", "--size", "8", "--set", "hidden=[3]"]
    assert main(arguments) == 0
    assert "env_options.features=mlp-8" in capsys.readouterr().out
    assert load_file(tmp_path / "features" / "digits-mlp-8" / "test.safetensors")["features"].shape == (
        355,
        3,
    )
    for wrong, message in ((["--encoder", "mpl"], "did you mean"), (["--size", "0"], "--size")):
        assert main(["features", "digits", *wrong]) == 2
        assert message in capsys.readouterr().err
