"""Atari 2600 games under a protocol that is data: frozen, hashed, stored with every score.

The fast path is ale-py's native vector environment, which emulates, skips, pools, resizes and stacks in C++.
What it does differently from the usual wrappers is part of the recorded protocol (``NATIVE_DIFFERENCES``),
and so is the engine itself: a score under Gymnasium's wrappers has another hash.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from neurocoder.envs.registry import EnvError, env_spec, is_atari
from neurocoder.errors import lookup, require

ENGINES = {"native": "ale-native-vector", "sync": "gymnasium-wrappers"}
"""What plays the games in each form of vectorization, as it is recorded with a score."""

NATIVE_DIFFERENCES = (
    "no-op starts are drawn from 0..noop_max-1 (wrappers: 1..noop_max)",
    "FIRE at reset, where used, is one emulator frame before the no-ops (wrappers: after them)",
    "the frame stack starts with zeros (wrappers: with copies of the first frame)",
    "the frame cap does not count the frames of no-op starts",
)


@dataclass(frozen=True, slots=True)
class AtariProtocol:
    """Everything about a game that changes what a score means."""

    name: str = "machado2018"
    """Preset that this protocol started from."""
    sticky: float = 0.25
    """Probability that the emulator repeats the previous action, per frame."""
    frame_skip: int = 4
    """Emulator frames per agent step; the observation pools the last two."""
    noop_max: int = 0
    """Episodes start with up to this many no-ops."""
    fire_reset: bool = False
    """Press FIRE at the start of an episode, where the game has that button."""
    life_loss_ends_episode: bool = False
    """The loss of a life ends the training episode; the game, and its raw score, go on."""
    full_action_space: bool = False
    """All 18 actions instead of the game's own."""
    screen_size: int = 84
    """Height and width of a frame in pixels."""
    stack: int = 4
    """Frames in an observation."""
    normalisation: str = "scale"
    """scale: pixels / 255; running: (frame − running mean) / running deviation, per environment."""
    max_frames: int = 108_000
    """Emulator frames after which an episode is truncated (30 minutes of play)."""

    def __post_init__(self) -> None:
        require(0 <= self.sticky < 1, "protocol.sticky", self.sticky, "in [0, 1)")
        for field in ("frame_skip", "screen_size", "stack", "max_frames"):
            require(getattr(self, field) >= 1, f"protocol.{field}", getattr(self, field), ">= 1")
        require(self.noop_max >= 0, "protocol.noop_max", self.noop_max, ">= 0")
        known = ("scale", "running")
        require(self.normalisation in known, "protocol.normalisation", self.normalisation, f"one of {known}")

    @property
    def hash(self) -> str:
        """Twelve hex digits over all fields but the name: equal hashes, comparable scores (native engine)."""
        return self.hash_on(ENGINES["native"])

    def hash_on(self, engine: str) -> str:
        """Return the hash of scores under this protocol on `engine`, one of the values of ``ENGINES``."""
        require(engine in ENGINES.values(), "engine", engine, f"one of {tuple(ENGINES.values())}")
        fields = {key: value for key, value in asdict(self).items() if key != "name"}
        text = json.dumps({"engine": engine, **fields}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def describe(self, engine: str = ENGINES["native"]) -> str:
        """Return one line for people, with the hash of scores on `engine`."""
        actions = "all 18 actions" if self.full_action_space else "minimal actions"
        lives = ", life loss ends training episodes" if self.life_loss_ends_episode else ""
        return (
            f"{self.name} [{self.hash_on(engine)}]: sticky {self.sticky}, skip {self.frame_skip}, "
            f"no-ops {self.noop_max}, {actions}, {self.screen_size}×{self.screen_size}×{self.stack}{lives}, "
            f"cap {self.max_frames} frames"
        )


PROTOCOLS: dict[str, AtariProtocol] = {
    # Machado et al. 2018, "Revisiting the Arcade Learning Environment"
    "machado2018": AtariProtocol(),
    # Mnih et al. 2015, "Human-level control through deep reinforcement learning"
    "dqn2015": AtariProtocol(name="dqn2015", sticky=0.0, noop_max=30, life_loss_ends_episode=True),
    # the preprocessing of the A3C network that the Neurocoder paper most likely used
    "neurocoder2020": AtariProtocol(
        name="neurocoder2020",
        sticky=0.0,
        noop_max=30,
        fire_reset=True,
        life_loss_ends_episode=True,
        screen_size=80,
        stack=1,
        normalisation="running",
    ),
}


def get_protocol(name: str) -> AtariProtocol:
    """Return the preset `name`, or raise with near names."""
    return lookup(PROTOCOLS, name, "protocol preset")


class RunningNormalization:
    """(frame − mean) / deviation with bias-corrected running averages, one pair per environment.

    mean ← 0.9999·mean + 0.0001·mean(frame), the same for the deviation, both divided by 1 − 0.9999ⁿ.
    """

    decay = 0.9999

    def __init__(self, num_envs: int) -> None:
        self.mean = np.zeros(num_envs)
        self.deviation = np.zeros(num_envs)
        self.count = 0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Update with frames [num_envs, ...] and return them normalised, float32."""
        x = frames.reshape(len(frames), -1).astype(np.float32)
        self.count += 1
        self.mean = self.decay * self.mean + (1 - self.decay) * x.mean(axis=1) / 255
        self.deviation = self.decay * self.deviation + (1 - self.decay) * x.std(axis=1) / 255
        return self._scale(x).reshape(frames.shape)

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """Return frames [num_envs, ...] normalised by the averages as they stand."""
        return self._scale(frames.reshape(len(frames), -1).astype(np.float32)).reshape(frames.shape)

    def _scale(self, x: np.ndarray) -> np.ndarray:
        """Normalise x [num_envs, pixels], 0 to 255, in place: twice over the frames, not six times."""
        correction = 1 - self.decay**self.count
        mean, deviation = self.mean / correction, self.deviation / correction + 1e-8
        x *= (1 / (255 * deviation)).astype(np.float32)[:, None]
        x -= (mean / deviation).astype(np.float32)[:, None]
        return x


class AtariEnvs(gym.vector.VectorEnv):
    """`num_envs` games of one kind stepping as one batch, with raw rewards.

    Autoreset is same-step: the observation of an ended game is the next game's first. Beyond Gymnasium's
    own keys, ``info["game_over"]`` [num_envs] says which *games* ended: with ``life_loss_ends_episode`` a
    lost life sets ``terminated`` while the game goes on, and ``info["final_obs"]`` rows are only valid where
    ``info["_final_obs"]`` is set (ale-py leaves the others uninitialised).

    Between :meth:`step_async` and :meth:`step_wait` the emulators run in threads of their own: a learner with
    two groups of games computes for one while the other plays.
    """

    exactly_resumable = False
    """ale-py's vector environment has no way to read or to set the state of its emulators."""

    def __init__(self, env_id: str, protocol: AtariProtocol, num_envs: int, num_threads: int = 1) -> None:
        spec = env_spec(env_id)
        if not is_atari(spec):
            raise EnvError(f"{env_id!r} is not an Atari game")
        # A class-wide dictionary in Gymnasium that AtariVectorEnv writes to: give each instance its own.
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        shared_metadata = dict(AtariVectorEnv.metadata)
        self.native = AtariVectorEnv(
            spec.kwargs["game"],
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=protocol.max_frames,
            repeat_action_probability=protocol.sticky,
            full_action_space=protocol.full_action_space,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=protocol.screen_size,
            img_width=protocol.screen_size,
            stack_num=protocol.stack,
            frameskip=protocol.frame_skip,
            noop_max=protocol.noop_max,
            use_fire_reset=protocol.fire_reset,
            life_loss_info=protocol.life_loss_ends_episode,
            reward_clipping=False,  # the raw score must be known; learners clip
        )
        self.native.metadata = dict(self.metadata)
        AtariVectorEnv.metadata.clear()
        AtariVectorEnv.metadata.update(shared_metadata)
        self.spec = spec
        self.env_id = spec.id
        self.protocol = protocol
        self.num_envs = num_envs
        self.normalization = RunningNormalization(num_envs) if protocol.normalisation == "running" else None
        self.single_action_space = self.native.single_action_space
        self.action_space = self.native.action_space
        self.single_observation_space = self.native.single_observation_space
        if self.normalization is not None:
            shape = self.single_observation_space.shape
            self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self._frames = np.zeros(num_envs, dtype=np.int64)
        self._pending = False

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start all games anew; `seed` is one integer (consecutive seeds) or one per game."""
        if self._pending:  # ale-py would return the step's results for the reset's
            raise gym.error.AlreadyPendingCallError("reset() between step_async() and step_wait()", "step")
        seeds = np.asarray(seed, dtype=np.int64) if isinstance(seed, Sequence) else seed
        observation, info = self.native.reset(seed=seeds, options=options)
        self._frames = info["episode_frame_number"].astype(np.int64)
        return self._normalize(observation), dict(info)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance all games by one agent step; rewards are raw, float64."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Hand `actions` [num_envs] to the emulators' threads and return at once."""
        if self._pending:
            raise gym.error.AlreadyPendingCallError("step_async() twice without step_wait()", "step")
        self.native.send(np.asarray(actions))
        self._pending = True

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait until the actions of :meth:`step_async` are done, and return what :meth:`step` returns."""
        if not self._pending:  # ale-py would wait for ever
            raise gym.error.NoAsyncCallError("step_wait() without step_async()", "step")
        observation, reward, terminated, truncated, info = self.native.recv()
        self._pending = False
        info = dict(info)
        frames = info["episode_frame_number"].astype(np.int64)
        # The emulator's frame count never falls within a game: `terminated` without a fall is a lost life.
        info["game_over"] = truncated | (terminated & (frames <= self._frames))
        self._frames = frames
        final = info.pop("final_obs", None)
        if final is not None and info["game_over"].any():
            info["final_obs"] = self.normalization.apply(final) if self.normalization else final
            info["_final_obs"] = info["game_over"]
        return self._normalize(observation), reward.astype(np.float64), terminated, truncated, info

    def _normalize(self, observation: np.ndarray) -> np.ndarray:
        return observation if self.normalization is None else self.normalization(observation)

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the emulators."""
        self.native.close()


class LifeLossEnds(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Single-environment form of ``life_loss_ends_episode``: a lost life terminates, the game goes on at reset."""

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._lives = 0
        self._last: tuple[Any, dict[str, Any]] | None = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self._last is not None and kwargs.get("seed") is None:
            observation, info = self._last
        else:
            observation, info = self.env.reset(**kwargs)
        self._last = None
        self._lives = info["lives"]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["game_over"] = terminated or truncated
        if 0 < info["lives"] < self._lives:
            self._last = None if info["game_over"] else (observation, info)
            terminated, truncated = True, False  # also at the frame cap, as the native environment has it
        self._lives = info["lives"]
        return observation, reward, terminated, truncated, info


def check_switches(game: str, mode: int | None, difficulty: int | None) -> None:
    """Raise an EnvError for a position that the switches of the cartridge do not have; None is as it is delivered."""
    plain = gym.make(game)
    ale = plain.unwrapped.ale  # type: ignore[attr-defined]
    there = {"mode": ale.getAvailableModes(), "difficulty": ale.getAvailableDifficulties()}
    plain.close()
    for name, value in (("mode", mode), ("difficulty", difficulty)):
        if value is not None and value not in there[name]:
            raise EnvError(f"{name} {value}: {game} has {sorted(map(int, there[name]))}")


def make_atari(
    env_id: str,
    protocol: AtariProtocol,
    *,
    render_mode: str | None = None,
    mode: int | None = None,
    difficulty: int | None = None,
) -> gym.Env:
    """Return one game behind Gymnasium's wrappers: slower than :class:`AtariEnvs`, but it can be watched.

    `mode` and `difficulty` are the cartridge's switches. Observations [stack, size, size] are uint8; ``normalisation = "running"``
    and ``fire_reset`` exist on the native path only and are refused here.

    Raises
    ------
    EnvError
        The id is no game's, the protocol is not for this path, or the cartridge has no such switch.
    """
    spec = env_spec(env_id)
    if not is_atari(spec):
        raise EnvError(f"{env_id!r} is not an Atari game")
    if protocol.normalisation != "scale" or protocol.fire_reset:
        raise EnvError(
            f"protocol {protocol.name!r}: running normalisation and FIRE at reset need the native "
            f"vector environment; use vectorization 'native' or another protocol"
        )
    switches: dict[str, Any] = {
        key: value for key, value in (("mode", mode), ("difficulty", difficulty)) if value is not None
    }
    game = f"ALE/{spec.name}-v5" if spec.namespace == "ALE" else env_id
    if switches:
        check_switches(game, mode, difficulty)
    env = gym.make(
        game,
        **switches,
        frameskip=1,  # AtariPreprocessing skips; a second skip would multiply
        repeat_action_probability=protocol.sticky,
        full_action_space=protocol.full_action_space,
        max_num_frames_per_episode=protocol.max_frames,
        obs_type="grayscale",
        render_mode=render_mode,
    )
    env = AtariPreprocessing(
        env, noop_max=protocol.noop_max, frame_skip=protocol.frame_skip, screen_size=protocol.screen_size
    )
    env = FrameStackObservation(env, protocol.stack, padding_type="zero")
    return LifeLossEnds(env) if protocol.life_loss_ends_episode else env
