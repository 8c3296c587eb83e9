"""Pictures of games.

Pictures are RGB, uint8 [height, width, 3]. Of an Atari game they are the emulator's own screen, whatever the agent
is shown; of other environments, what they render; of those that render nothing, the observation itself, drawn.
"""

from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from neurocoder.envs.atari import AtariProtocol
from neurocoder.envs.registry import EnvError, env_spec, is_atari

SMALLEST = 128
"""Drawn observations are enlarged to about this many pixels."""
CELL = 16
"""Pixels of one number of a drawn vector."""


class AtariCamera:
    """The screen of one game: an emulator of its own that is given the same seed and the same actions.

    It plays what ale-py's native vector environment plays, frame by frame, so that it can also bring an episode back
    from its seed, `start_frames` and actions alone. A picture is the larger, per pixel and colour, of the last two
    frames of an agent step: sprites that flicker are there in every other frame only.
    """

    def __init__(self, env_id: str, protocol: AtariProtocol) -> None:
        spec = env_spec(env_id)
        if not is_atari(spec):
            raise EnvError(f"{env_id!r} is not an Atari game")
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        rom = ale_py.roms.get_rom_path(spec.kwargs["game"])
        if rom is None:
            raise EnvError(f"{env_id}: its ROM is missing from ale-py; install ale-py again")
        self._rom = rom
        self._protocol = protocol
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", protocol.sticky)
        self._ale.setInt("max_num_frames_per_episode", protocol.max_frames)
        self._ale.loadROM(rom)
        self._actions = (
            self._ale.getLegalActionSet() if protocol.full_action_space else self._ale.getMinimalActionSet()
        )
        self.reward = 0.0
        """Raw, of the last step."""

    def start(self, seed: int, start_frames: int) -> np.ndarray:
        """Begin the game of `seed`, `start_frames` emulator frames into it, and return its first picture.

        The frames at the start are FIRE, where the protocol presses it and the game has that button, then no-ops: how
        many is the native environment's own draw, which it tells as ``info["episode_frame_number"]`` of its reset.
        """
        ale = self._ale
        ale.setInt("random_seed", seed)
        ale.loadROM(self._rom)  # takes the seed
        ale.reset_game()  # once more than it seems to need: some games (Freeway) tell the difference
        for frame in range(start_frames):
            fires = frame == 0 and self._protocol.fire_reset and ale_py.Action.FIRE in self._actions
            ale.act(ale_py.Action.FIRE if fires else ale_py.Action.NOOP)
        return ale.getScreenRGB()

    def step(self, action: int) -> np.ndarray:
        """Take `action` for one agent step and return the picture after it."""
        ale, screens = self._ale, []
        self.reward = 0.0
        for frame in range(self._protocol.frame_skip):
            self.reward += ale.act(self._actions[action])
            last = frame == self._protocol.frame_skip - 1 or ale.game_over()
            if last or frame == self._protocol.frame_skip - 2:
                screens.append(ale.getScreenRGB())
            if last:
                break
        return np.maximum.reduce(screens)

    @property
    def over(self) -> bool:
        """Whether the game has ended, by itself or at the frame cap."""
        return bool(self._ale.game_over())

    def action_names(self) -> list[str]:
        """Return the names of the actions."""
        return [action.name for action in self._actions]


def draw_observation(observation: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
    """Return a picture of an observation: images as they are, of a stack the newest; of vectors a cell per number.

    Numbers are grey between the space's bounds (black to white), or squashed by tanh where it has none.
    """
    value = np.asarray(observation, np.float64)
    bounded = np.isfinite(space.low) & np.isfinite(space.high) & (space.high > space.low)
    low, width = np.where(bounded, space.low, 0.0), np.where(bounded, space.high - space.low * 1.0, 1.0)
    grey = np.where(bounded, (value - low) / width, 0.5 + 0.5 * np.tanh(value))
    pixels = np.rint(255 * np.clip(np.nan_to_num(grey), 0, 1)).astype(np.uint8)
    if pixels.ndim == 3:  # [channels, height, width]
        pixels = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[-1]
    elif pixels.ndim != 2:
        flat = pixels.reshape(-1)
        columns = int(np.ceil(np.sqrt(len(flat)))) if len(flat) > 32 else len(flat)
        rows = -(-len(flat) // columns)
        flat = np.pad(flat, (0, rows * columns - len(flat)))
        pixels = flat.reshape(rows, columns).repeat(CELL, 0).repeat(CELL, 1)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    factor = max(1, SMALLEST // max(pixels.shape[:2]))
    return np.ascontiguousarray(pixels.repeat(factor, 0).repeat(factor, 1))


def can_render(spec: EnvSpec) -> bool:
    """Whether environments of `spec` say that they render RGB arrays, and what they need for it is installed."""
    try:
        creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(str(spec.entry_point))
        if "rgb_array" not in getattr(creator, "metadata", {}).get("render_modes", ()):
            return False
        env = gym.make(spec, render_mode="rgb_array", disable_env_checker=True)
    except Exception:  # an environment that cannot be made is somebody else's error
        return False
    try:
        env.reset(seed=0)
        return isinstance(env.render(), np.ndarray)
    except Exception:  # most often a missing package: gymnasium asks for pygame only when something is drawn
        return False
    finally:
        env.close()


class PicturedGame(gym.Wrapper):
    """Keep a picture of every state, also of the last one before a batch resets the game by itself."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.pictures: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """Return the oldest picture since the last call, and forget all others."""
        picture = self.pictures[0]
        self.pictures.clear()
        return picture

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._keep(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(action)
        self._keep(observation)
        return observation, *rest

    def _keep(self, observation: Any) -> None:
        if self.env.render_mode == "rgb_array":
            self.pictures.append(np.array(self.env.render(), dtype=np.uint8))
        else:
            assert isinstance(self.observation_space, gym.spaces.Box)
            self.pictures.append(draw_observation(observation, self.observation_space))
