"""Games that can be brought back exactly: every episode has a seed of its own, and its actions are kept.

Resetting with the episode's seed and taking the same actions again rebuilds everything at once: the emulator
and its random numbers, frame stack, lives, time limit, returns. Emulators' own save states do not (ALE's
forgets the action that a sticky emulator would repeat). A replay that shows other observations than the
first time is an error: an environment that is not deterministic is found out.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode

from neurocoder.envs.atari import LifeLossEnds
from neurocoder.envs.registry import EnvError

BEAT_EVERY = 100
"""Steps between two calls of ``beat`` while an episode is played again."""


class GameState(NamedTuple):
    """What brings one game back, as plain integers and arrays.

    ============ ============= ======================================================================
    seed         int           of the game's first episode; the seeds of later ones follow from it
    episode      int           which episode it is, from 0
    actions      [steps, …]    taken in this episode so far; int64, uint8, float32 or float64
    resets       [lives lost]  int64: number of actions before each reset that went on with the game
    checksum     int           CRC-32 over all observations of this episode, in order
    ============ ============= ======================================================================
    """

    seed: int
    episode: int
    actions: np.ndarray
    resets: np.ndarray
    checksum: int


def episode_seed(seed: int, episode: int) -> int:
    """Return the seed of episode `episode` of a game that began with `seed` (which is that of episode 0)."""
    if episode == 0:
        return seed
    words = np.random.SeedSequence(entropy=seed, spawn_key=(episode,)).generate_state(1, np.uint32)
    return int(words[0] >> 1)  # 31 bits, which every environment takes


class SeededEpisodes(gym.Wrapper):
    """Seed every episode, keep its actions, and rebuild the game from them. The outermost wrapper.

    ``reset(seed=s)`` begins episode 0, seeded with `s`; ``reset()`` begins the next one, seeded with
    :func:`episode_seed`, or goes on with the game after a lost life (:class:`LifeLossEnds`).
    ``info["game_over"]`` of a step says whether the whole episode ended. Actions are taken in the dtype of
    the action space.

    Raises
    ------
    EnvError
        Actions are no arrays or numbers (Tuple, Dict, Text, …).
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete):
            raise EnvError(
                f"action space {space}: expected a Box, Discrete, MultiDiscrete or MultiBinary; wrap the "
                f"environment so that it takes one, and register it under an id of its own"
            )
        self._action_dtype = np.dtype(space.dtype)
        self._action_shape: tuple[int, ...] = space.shape or ()
        self._seed: int | None = None
        self._episode = 0
        self._begin_logs(None)

    def _begin_logs(self, options: dict[str, Any] | None) -> None:
        self.episode_return = 0.0
        """Sum of the rewards of this episode so far."""
        self.episode_length = 0
        """Steps of this episode so far."""
        self._actions = bytearray()  # grows in place: an episode may have a hundred thousand steps
        self._resets: list[int] = []
        self._checksum = 0
        self._life_lost = False
        self._options = options

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is None and self._life_lost:
            return self._go_on(options)
        if seed is not None:
            self._seed, self._episode = int(seed), 0
        elif self._seed is None:
            self._seed = int(np.random.SeedSequence().generate_state(1, np.uint32)[0] >> 1)
        else:
            self._episode += 1
        return self._begin(self._seed, options)

    def _begin(self, seed: int, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._begin_logs(options)
        observation, info = self.env.reset(seed=episode_seed(seed, self._episode), options=options)
        self._see(observation)
        return observation, info

    def _go_on(self, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(options=options)
        self._resets.append(self.episode_length)
        self._life_lost = False
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        action = np.asarray(action, self._action_dtype)
        self._actions += action.tobytes()
        observation, reward, terminated, truncated, info = self.env.step(action[()])  # 0-d: a number again
        ended = bool(terminated or truncated)
        self._life_lost = ended and isinstance(self.env, LifeLossEnds) and not info["game_over"]
        info["game_over"] = ended and not self._life_lost
        self.episode_length += 1
        self.episode_return += float(reward)
        self._see(observation)
        return observation, reward, terminated, truncated, info

    def _see(self, observation: Any) -> None:
        self._checksum = zlib.crc32(np.asarray(observation).tobytes(), self._checksum)

    def state(self) -> GameState:
        """Return what :meth:`restore` needs to bring this game back, here or in a fresh environment.

        Raises
        ------
        EnvError
            The episode was begun with reset options, which are not part of the state.
        """
        if self._seed is None:
            raise gym.error.ResetNeeded("state() needs a game: call reset() first")
        if self._options:
            raise EnvError(f"{self._name}: a game begun with reset options {self._options} cannot be stored")
        actions = np.frombuffer(self._actions, self._action_dtype)
        return GameState(
            seed=self._seed,
            episode=self._episode,
            actions=actions.reshape(-1, *self._action_shape).astype(_storable(self._action_dtype)),
            resets=np.array(self._resets, dtype=np.int64),
            checksum=self._checksum,
        )

    def restore(self, state: GameState, beat: Callable[[], None] = lambda: None) -> Any:
        """Play the episode of `state` again up to where it was, and return the observation there.

        `beat` is called every hundred steps.

        Raises
        ------
        EnvError
            The state is of another environment, or the replay went otherwise than the first time: this
            environment is not deterministic given its seed and its actions. The game must then be reset.
        """
        self._check(state)
        self._seed, self._episode = state.seed, state.episode
        resets = set(state.resets.tolist())
        n_steps = len(state.actions)
        observation, _ = self._begin(state.seed)
        for step, action in enumerate(state.actions, start=1):
            observation, *_, info = self.step(action)
            if step % BEAT_EVERY == 0:
                beat()
            if step in resets and self._life_lost:
                observation, _ = self._go_on()
            elif step in resets or (info["game_over"] and step < n_steps):
                raise self._differs(n_steps)
        if self._checksum != state.checksum:
            raise self._differs(n_steps)
        return observation

    def _check(self, state: GameState) -> None:
        """Raise an EnvError unless `state` could be one of this environment."""
        space, actions = self.action_space, state.actions
        numbers = (state.seed, state.episode, state.checksum)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise EnvError(
                f"{self._name}: seed, episode and checksum of a game state are integers >= 0, got {numbers}"
            )
        if actions.dtype != _storable(self._action_dtype) or actions.shape[1:] != self._action_shape:
            raise EnvError(
                f"{self._name}: the actions of a game state are {_storable(self._action_dtype)} "
                f"{[len(actions), *self._action_shape]}, got {actions.dtype} {list(actions.shape)}: "
                f"another environment?"
            )
        if isinstance(space, Box):
            return  # environments clip, or do not mind: what they took once they take again
        for action in actions.astype(self._action_dtype):
            if action not in space:
                raise EnvError(f"{self._name}: a game state has action {action}, expected one of {space}")

    def _differs(self, n_steps: int) -> EnvError:
        return EnvError(
            f"{self._name}: playing {n_steps} steps of episode {self._episode} (seed {self._seed}) again "
            f"showed other observations than the first time: the environment is not deterministic given "
            f"its seed and its actions, or was another version; the game can only start anew"
        )

    @property
    def _name(self) -> str:
        spec = self.unwrapped.spec
        return f"environment {spec.id if spec else type(self.unwrapped).__name__!r}"


def _storable(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which actions of `dtype` are stored, losing nothing."""
    if dtype in (np.int64, np.uint8, np.float32, np.float64):
        return dtype
    return np.dtype(np.float64 if dtype.kind == "f" else np.int64)


class ReplayableEnvs(gym.vector.SyncVectorEnv):
    """`num_envs` games from `make_game` stepped one after the other, whose exact state can be kept.

    Conventions are those of :class:`neurocoder.envs.atari.AtariEnvs`: same-step autoreset,
    ``info["game_over"]`` [num_envs] on every step, ``info["final_obs"]`` [num_envs, ...] with its mask
    ``info["_final_obs"]`` only where whole episodes ended.
    """

    exactly_resumable = True

    def __init__(self, make_game: Callable[[], gym.Env], num_envs: int) -> None:
        self.games = [SeededEpisodes(make_game()) for _ in range(num_envs)]
        super().__init__(
            [lambda game=game: game for game in self.games],  # type: ignore[misc]
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self._pending: np.ndarray | None = None

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start all games anew; `seed` is one integer (consecutive seeds) or one per game."""
        if self._pending is not None:
            raise gym.error.AlreadyPendingCallError("reset() between step_async() and step_wait()", "step")
        return super().reset(seed=seed, options=options)  # type: ignore[arg-type]

    def step_async(self, actions: np.ndarray) -> None:
        """Take `actions` [num_envs, ...]; :meth:`step_wait` steps the games with them."""
        if self._pending is not None:
            raise gym.error.AlreadyPendingCallError("step_async() twice without step_wait()", "step")
        self._pending = np.array(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Return what :meth:`step` returns, for the actions of :meth:`step_async`."""
        if self._pending is None:
            raise gym.error.NoAsyncCallError("step_wait() without step_async()", "step")
        actions, self._pending = self._pending, None
        observation, reward, terminated, truncated, info = super().step(actions)
        ended = info.get("final_info", {"game_over": np.zeros(self.num_envs, dtype=np.bool_)})
        info["game_over"] = over = ended["game_over"]
        info.pop("_game_over", None)
        final = info.pop("final_obs", None)
        info.pop("_final_obs", None)
        if over.any():
            info["final_obs"] = np.zeros_like(observation)
            for row in np.flatnonzero(over):
                info["final_obs"][row] = final[row]
            info["_final_obs"] = over
        return observation, reward, terminated, truncated, info

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance all games by one step."""
        self.step_async(actions)
        return self.step_wait()

    def get_state(self) -> list[GameState]:
        """Return the state of every game, between two steps."""
        if self._pending is not None:
            raise gym.error.AlreadyPendingCallError(
                "get_state() between step_async() and step_wait()", "step"
            )
        return [game.state() for game in self.games]

    def set_state(self, states: Sequence[GameState], beat: Callable[[], None] = lambda: None) -> np.ndarray:
        """Bring every game to its state and return their observations; the next call is a step, not a reset.

        Takes about as long as the episodes took; `beat` is called every hundred steps. After an error,
        :meth:`reset` starts all games anew.

        Raises
        ------
        EnvError
            See :meth:`SeededEpisodes.restore`; or there are not as many states as games.
        """
        if len(states) != self.num_envs:
            raise EnvError(f"expected the states of {self.num_envs} games, got {len(states)}")
        self._pending = None
        observations = [game.restore(state, beat) for game, state in zip(self.games, states, strict=True)]
        return np.stack(observations, dtype=self.single_observation_space.dtype)
