"""Supervised tasks as environments: the observation is the input, the action is the prediction.

What is seen next never depends on what was predicted, so a task is a stream of drawn sequences::

    info["target"]   the truth for the observation that the same call returned
    info["mask"]     whether it is scored (only of tasks that score a part of a sequence)
    reward           of step: the action against the target of the observation before

============ ============================ ==========================================
action space target                       reward
============ ============================ ==========================================
Discrete     class                        1 if right, 0 if not
Box          numbers                      minus the mean squared error
MultiBinary  bits                         minus how many are wrong
============ ============================ ==========================================

Where a step is not scored its reward is 0. A policy can thus be trained by gradient from the targets, or by reward.
The vector form draws whole batches at once: it is the data loader.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from neurocoder.envs.registry import EnvError, env_spec
from neurocoder.errors import NeurocoderError, near

EPISODE = 100
"""Steps of an episode where a task is one endless stream: the raw return of a classification is a percentage."""


class Drawn(NamedTuple):
    """A batch of sequences of one length: inputs [T, B, ...], targets [T, B, ...], mask [T, B] bool or None (all count)."""

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray | None = None


class Task(ABC):
    """What is to be learned. Tasks are values: everything random in a draw comes from its seed and index."""

    observation_space: gym.spaces.Box
    action_space: gym.spaces.Discrete | gym.spaces.Box | gym.spaces.MultiBinary
    provenance = ""
    """Where its data comes from, where that is worth a word beside every figure."""
    endless = False
    """Whether draws are pieces of one endless stream (images); otherwise each is an episode (sequences)."""

    def passes(self, batch: int) -> int | None:
        """Return how many draws show everything once, or None where there is no such number."""
        return None

    @property
    def name(self) -> str:
        """What errors call it."""
        return type(self).__name__

    def with_options(self, **options: Any) -> "Task":
        """Return the same task with other values of `options`.

        Raises
        ------
        EnvError, ConfigError
            There is no such option, it is not one that may change while something learns, or not to these values.
        """
        self._refuse(options)
        return self

    def _refuse(self, options: Iterable[str], known: Iterable[str] = ()) -> None:
        """Raise an EnvError for the first of `options` that is not known as one that may change."""
        for option in options:
            if option not in known:
                raise EnvError(
                    f"{self.name} has no option {option!r} that may change while something learns{near(option, known)}"
                )

    @abstractmethod
    def draw(self, seed: int, index: int, batch: int) -> Drawn:
        """Return the draw number `index` of the stream that `seed` begins, for `batch` environments."""


def score(action: np.ndarray, target: np.ndarray, mask: np.ndarray | None, space: gym.Space) -> np.ndarray:
    """Return the rewards [B] of actions [B, ...] for targets [B, ...], as the module's table has them."""
    if isinstance(space, gym.spaces.Discrete):
        reward = (action == target).astype(np.float64)
    elif isinstance(space, gym.spaces.MultiBinary):
        reward = -(action != target).reshape(len(target), -1).sum(axis=1).astype(np.float64)
    else:
        reward = -np.square(action.astype(np.float64) - target).reshape(len(target), -1).mean(axis=1)
    return reward if mask is None else np.where(mask, reward, 0.0)


class Place(NamedTuple):
    """Where a stream stands: seed, number of the draw, step within it, steps since the episode began."""

    seed: int
    draw: int
    step: int
    steps: int


class Curriculum(Task):
    """A task some of whose options grow from draw to draw, in equal steps, and then stay.

    Parameters
    ----------
    task
        What is learned. Its spaces hold throughout.
    start, end
        Options of it that are whole numbers, e.g. max_length: their values in the first draw, and from draw number
        `draws` on.

    Raises
    ------
    EnvError, ConfigError
        The task has no such option, not with these values, or they change what is seen or said in a step.
    """

    def __init__(self, task: Task, start: Mapping[str, int], end: Mapping[str, int], draws: int) -> None:
        assert start.keys() == end.keys()
        self.task, self.start, self.end, self.draws = task, start, end, draws
        self.observation_space, self.action_space = task.observation_space, task.action_space
        self.provenance, self.endless = task.provenance, task.endless
        for values in (start, end):
            other = task.with_options(**values)
            shapes = other.observation_space.shape, other.action_space.shape
            if shapes != (task.observation_space.shape, task.action_space.shape):
                raise EnvError(
                    f"{task.name} with {_spelled(values)}: observations and actions of another size than the network's; "
                    f"options of a curriculum may only make a task longer or harder"
                )

    @property
    def name(self) -> str:
        return self.task.name

    def values(self, index: int) -> dict[str, int]:
        """Return the options' values in draw number `index`."""
        done = min(1.0, index / self.draws) if self.draws else 1.0
        return {name: round(first + (self.end[name] - first) * done) for name, first in self.start.items()}

    def draw(self, seed: int, index: int, batch: int) -> Drawn:
        return self.task.with_options(**self.values(index)).draw(seed, index, batch)


def _spelled(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


class Stream:
    """A batch of environments of `task`, step by step; they all begin and end together."""

    def __init__(self, task: Task, batch: int, episode_length: int) -> None:
        if episode_length < 1:
            raise EnvError(f"episode_length={episode_length} must be >= 1")
        self.task, self.batch, self.episode_length = task, batch, episode_length
        self._place: Place | None = None
        self._drawn: Drawn | None = None

    @property
    def place(self) -> Place:
        """Where the stream stands: all that :meth:`go_to` needs."""
        if self._place is None:
            raise gym.error.ResetNeeded("call reset() first")
        return self._place

    def go_to(self, place: Place) -> None:
        """Continue from `place`, here or in another process."""
        self._drawn = self.task.draw(place.seed, place.draw, self.batch)
        self._place = place

    def begin(self, seed: int | None) -> None:
        """Begin the first episode of `seed`, or the next one."""
        if seed is not None:
            self.go_to(Place(seed, 0, 0, 0))
        else:
            place = self.place
            at_start = place.step == place.steps == 0
            self.go_to(Place(place.seed, place.draw + (not at_start), 0, 0))

    @property
    def drawn(self) -> Drawn:
        """The sequences that the stream is in."""
        if self._drawn is None:
            raise gym.error.ResetNeeded("call reset() first")
        return self._drawn

    def see(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return observation, target and mask of this step, for all environments."""
        inputs, targets, mask = self.drawn
        step = self.place.step
        return inputs[step], targets[step], None if mask is None else mask[step]

    def score(self, action: np.ndarray) -> np.ndarray:
        """Return the rewards [B] of what is predicted at this step."""
        _, target, mask = self.see()
        return score(action, target, mask, self.task.action_space)

    def advance(self) -> tuple[bool, bool]:
        """Go to the next step; return whether that ended the sequences, and whether it ended an episode of a stream.

        After the last step of sequences the stream stands before the next ones.
        """
        place = self.place
        step, steps = place.step + 1, place.steps + 1
        over = step == len(self.drawn.inputs)
        ended = over and not self.task.endless
        truncated = self.task.endless and steps == self.episode_length
        steps = 0 if ended or truncated else steps
        if over:
            self.go_to(Place(place.seed, place.draw + 1, 0, steps))
        else:
            self._place = place._replace(step=step, steps=steps)
        return ended, truncated


def _as_seed(seed: Any) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))


class TaskVectorEnv(gym.vector.VectorEnv):
    """`num_envs` environments of a task, drawn as one batch; ``gymnasium.make_vec`` returns this.

    They begin and end together, so a reset of some of them is not possible. Resets in the same step: ``final_obs`` is
    there at the end of an episode, all zeros after the last step of a sequence.
    """

    def __init__(self, task: Task, num_envs: int = 1, episode_length: int = EPISODE) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.task = task
        self.num_envs = num_envs
        self.single_observation_space = task.observation_space
        self.single_action_space = task.action_space
        self.observation_space = batch_space(task.observation_space, num_envs)
        self.action_space = batch_space(task.action_space, num_envs)
        self.stream = Stream(task, num_envs, episode_length)
        self._never = np.zeros(num_envs, dtype=bool)
        self._always = np.ones(num_envs, dtype=bool)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the first episodes of `seed` (an integer, or a list of them), or the next ones."""
        super().reset(seed=None)
        mask = (options or {}).get("reset_mask")
        if mask is not None and not np.all(mask):
            raise EnvError("environments of a batch begin together: reset_mask must be all True")
        if seed is not None:
            self.stream.begin(_as_seed(seed))
        else:
            started = self.stream._place is not None
            self.stream.begin(None if started else _as_seed(None))
        observation, target, scored = self.stream.see()
        return observation, self._info(target, scored)

    def go_to(self, place: Place) -> tuple[np.ndarray, dict[str, Any]]:
        """Continue from `place` (``stream.place`` of then), and return what is seen there."""
        self.stream.go_to(place)
        observation, target, scored = self.stream.see()
        return observation, self._info(target, scored)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Score `actions` [num_envs, ...] and return the next batch."""
        reward = self.stream.score(np.asarray(actions))
        ended, truncated = self.stream.advance()
        observation, target, scored = self.stream.see()
        info = self._info(target, scored)
        if ended or truncated:
            info["final_obs"] = np.zeros_like(observation) if ended else observation
            info["_final_obs"] = self._always
        terminated = (self._always if ended else self._never).copy()
        return observation, reward, terminated, (self._always if truncated else self._never).copy(), info

    def _info(self, target: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
        return {"target": target} if mask is None else {"target": target, "mask": mask}


class TaskEnv(gym.Env):
    """One environment of a task. Episodes of sequences terminate; those of a stream are truncated."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # as Gymnasium declares it

    def __init__(self, task: Task, episode_length: int = EPISODE) -> None:
        self.task = task
        self.observation_space = task.observation_space
        self.action_space = task.action_space
        self._stream = Stream(task, 1, episode_length)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the first episode of `seed`, or the next one."""
        super().reset(seed=seed)
        first = seed is not None or self._stream._place is None
        self._stream.begin(int(self.np_random.integers(2**62)) if first else None)
        self._running = True
        return self._seen()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Score `action` and return the next observation, all zeros after the last step of a sequence."""
        if not self._running:
            raise gym.error.ResetNeeded("the episode has ended: call reset()")
        reward = float(self._stream.score(np.asarray(action)[None])[0])
        ended, truncated = self._stream.advance()
        self._running = not (ended or truncated)
        observation, info = self._seen()
        if ended:  # what the stream shows is of the next episode
            observation = np.zeros_like(observation)
            info = {name: np.zeros_like(value)[()] for name, value in info.items()}
        return observation, reward, ended, truncated, info

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        observation, target, mask = self._stream.see()
        info: dict[str, Any] = {"target": target[0]}
        if mask is not None:
            info["mask"] = bool(mask[0])
        return observation[0], info


def make_tasks(
    env_id: str, num_envs: int, options: Mapping[str, Any] | None = None, *, trust: bool = True
) -> TaskVectorEnv:
    """Return `num_envs` environments of a task as one batch that is drawn at once, made with `options`.

    Raises
    ------
    EnvError
        The id is unknown, is no supervised task, or cannot be made with these options.
    """
    spec = env_spec(env_id, trust=trust)
    try:
        envs = gym.make_vec(spec, num_envs, **(options or {}))
    except NeurocoderError:
        raise
    except Exception as error:  # most often an option that the task does not know
        raise EnvError(f"environment {env_id!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(envs.unwrapped, TaskVectorEnv):
        envs.close()
        raise EnvError(
            f"{env_id!r} is no supervised task: its info has no targets; learn it with --agent a3c"
        )
    return envs.unwrapped
