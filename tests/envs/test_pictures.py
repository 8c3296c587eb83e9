"""Pictures of games: an emulator beside the native one shows the same game, frame by frame."""

from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from neurocoder.envs import EnvError, WatchedGame, get_protocol, make_watched
from neurocoder.envs.pictures import AtariCamera, PicturedGame, can_render, draw_observation

GAMES = {"ALE/Pong-v5": "pong", "ALE/Freeway-v5": "freeway", "ALE/MsPacman-v5": "ms_pacman"}


@pytest.mark.parametrize("preset", ["machado2018", "dqn2015", "neurocoder2020"])
@pytest.mark.parametrize("game", GAMES)
def test_pictures_are_the_native_emulators_own(game: str, preset: str) -> None:
    protocol = get_protocol(preset)
    oracle = AtariVectorEnv(  # the same games in colour, not resized, not stacked
        GAMES[game],
        1,
        num_threads=1,
        grayscale=False,
        img_height=210,
        img_width=160,
        stack_num=1,
        frameskip=protocol.frame_skip,
        repeat_action_probability=protocol.sticky,
        noop_max=protocol.noop_max,
        use_fire_reset=protocol.fire_reset,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    rng = np.random.default_rng(0)
    ended = 0
    with closing(make_watched(game, protocol=protocol)) as watched, closing(oracle):
        for seed in (3, 4):
            watched.reset(seed=seed)
            expected, _ = oracle.reset(seed=np.array([seed]))
            np.testing.assert_array_equal(watched.take(), expected[0])
            for _ in range(500):
                action = rng.integers(watched.single_action_space.n, size=1)
                *_, info = watched.step(action)
                expected, *_ = oracle.step(action)
                (picture,) = watched.take()
                if info["_episode"][0]:  # the oracle shows the next game already
                    ended += 1
                    break
                np.testing.assert_array_equal(picture, expected[0, 0])
            assert watched.faithful
    assert ended or game != "ALE/MsPacman-v5"


def test_a_second_emulator_that_shows_another_game_is_found_out() -> None:
    with closing(make_watched("ALE/Breakout-v5")) as watched:
        watched.reset(seed=1)
        watched._camera.start(2, 0)
        rng = np.random.default_rng(0)
        for _ in range(300):
            watched.step(rng.integers(4, size=1))
        assert not watched.faithful
        watched.reset(seed=1)
        assert watched.faithful


def test_a_watched_game_needs_its_seed() -> None:
    with closing(make_watched("CartPole-v1")) as watched, pytest.raises(EnvError, match="seed"):
        watched.reset()


def test_only_atari_games_have_a_camera() -> None:
    with pytest.raises(EnvError, match="not an Atari game"):
        AtariCamera("CartPole-v1", get_protocol("machado2018"))


class Colours(gym.Env):
    """Ends after three steps; what it renders is how many it has made."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == 3, False, {}

    def render(self):
        return np.full((2, 3, 3), self.steps, np.uint8)


class Silent(Colours):
    """Says that it renders, and fails at it, as environments do without their drawing package."""

    def render(self):
        raise gym.error.DependencyNotInstalled("pip install something")


@pytest.fixture
def registered():
    gym.register("test/Colours-v0", Colours)
    gym.register("test/Silent-v0", Silent)
    yield
    del gym.registry["test/Colours-v0"], gym.registry["test/Silent-v0"]


@pytest.mark.usefixtures("registered")
def test_there_is_a_picture_of_every_state_and_of_the_last_one_before_the_reset() -> None:
    with closing(make_watched("test/Colours-v0")) as watched:
        assert isinstance(watched, WatchedGame) and watched.action_names is None
        watched.reset(seed=0)
        seen = [picture[0, 0, 0] for picture in watched.take()]
        for _ in range(3):
            *_, info = watched.step(np.array([0]))
            seen += [picture[0, 0, 0] for picture in watched.take()]
        assert info["_episode"][0] and seen == [0, 1, 2, 3]


@pytest.mark.usefixtures("registered")
def test_what_cannot_be_rendered_is_drawn() -> None:
    assert can_render(gym.spec("test/Colours-v0")) and not can_render(gym.spec("test/Silent-v0"))
    with closing(make_watched("test/Silent-v0")) as watched:
        watched.reset(seed=0)
        (picture,) = watched.take()
        assert picture.shape == (128, 128, 3) and not picture.any()


def test_a_stranger_who_cannot_be_made_cannot_be_rendered() -> None:
    assert not can_render(gym.envs.registration.EnvSpec("x-v0", entry_point="no_such_module:Env"))


@pytest.mark.parametrize(
    ("value", "space", "expected"),
    [
        # between the bounds: black to white; enlarged 16-fold to cells, then to about 128 pixels
        ([0.0, 1.0, 0.5], gym.spaces.Box(0, 1, (3,)), [0, 255, 128]),
        # no bounds: tanh
        ([0.0, 100.0], gym.spaces.Box(-np.inf, np.inf, (2,)), [128, 255]),
        ([np.nan], gym.spaces.Box(0, 1, (1,)), [0]),
    ],
)
def test_a_vector_is_a_row_of_grey_cells(value, space, expected) -> None:
    picture = draw_observation(np.array(value, np.float32), space)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    cell = picture.shape[1] // len(expected)
    assert picture.shape[0] == cell
    assert [int(picture[0, cell * i, 0]) for i in range(len(expected))] == expected
    assert all((picture[:, cell * i : cell * (i + 1)] == expected[i]).all() for i in range(len(expected)))


def test_images_are_shown_as_they_are_and_of_a_stack_the_newest() -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (3, 100, 80), dtype=np.uint8)
    space = gym.spaces.Box(0, 255, colour.shape, np.uint8)
    np.testing.assert_array_equal(draw_observation(colour, space), colour.transpose(1, 2, 0))
    stack = rng.integers(0, 256, (4, 100, 80), dtype=np.uint8)
    space = gym.spaces.Box(0, 255, stack.shape, np.uint8)
    drawn = draw_observation(stack, space)
    assert all((drawn[..., channel] == stack[-1]).all() for channel in range(3))
    small = rng.random((28, 28)).astype(np.float32)
    drawn = draw_observation(small, gym.spaces.Box(0, 1, (28, 28)))
    assert drawn.shape == (112, 112, 3)
    np.testing.assert_array_equal(drawn[::4, ::4, 1], np.rint(255 * small.astype(np.float64)))


def test_long_vectors_are_folded_and_padded() -> None:
    value = np.linspace(0, 1, 40, dtype=np.float32)
    drawn = draw_observation(value, gym.spaces.Box(0, 1, (40,)))
    assert drawn.shape == (6 * 16, 7 * 16, 3)
    cells = drawn[::16, ::16, 0].ravel()
    np.testing.assert_array_equal(cells[:40], np.rint(255 * value.astype(np.float64)))
    assert not cells[40:].any()


def test_a_pictured_game_keeps_pictures_until_they_are_taken() -> None:
    game = PicturedGame(Colours(render_mode="rgb_array"))
    game.reset(seed=0)
    game.step(0)
    assert len(game.pictures) == 2
    assert game.take()[0, 0, 0] == 0 and not game.pictures
