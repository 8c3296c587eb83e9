"""Our environments as a VecEnv of Stable-Baselines3: ale-py's native speed in SB3 scripts.

from stable_baselines3 import PPO
from neurocoder.envs.sb3 import make_atari

envs = make_atari("ALE/Pong-v5", n_envs=8, seed=0)  # instead of make_atari_env + VecFrameStack
model = PPO("CnnPolicy", envs)
"""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from neurocoder.envs.atari import AtariProtocol, get_protocol
from neurocoder.envs.registry import EnvError, env_spec, is_atari
from neurocoder.envs.vector import EpisodeRecorder, make_vec


class SB3VecEnv(VecEnv):
    """`envs` of ``neurocoder.envs.make_vec`` with SB3's interface; do not step them elsewhere.

    What SB3 finds in the dictionary ``infos[i]`` of a step:

    ======================= ==================================================================================
    terminal_observation    where done: the episode's last observation. Where a life was lost and the game goes
                            on, there is none apart from the one returned
    TimeLimit.truncated     where done: whether the episode was cut, so that its last observation has a value
    episode                 where a *game* ended: raw return r, agent steps l and seconds t, as Monitor has it
    lives                   Atari: lives left
    ======================= ==================================================================================

    With `clip_reward`, learners get the sign of each reward; ``episode`` is raw all the same.
    """

    def __init__(self, envs: EpisodeRecorder, *, clip_reward: bool = False) -> None:
        self.envs, self.clip_reward = envs, clip_reward
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self._began = time.monotonic()

    def reset(self) -> VecEnvObs:
        if any(self._options):
            raise EnvError(f"options {self._options!r} at reset: these environments know none")
        seeded = [seed is not None for seed in self._seeds]
        if any(seeded) and not all(seeded):
            raise EnvError(f"seeds {self._seeds!r}: give every environment one, or none")
        observation, info = self.envs.reset(seed=self._game_seeds() if any(seeded) else None)
        self._reset_seeds()
        self.reset_infos = [self._lives(info, row) for row in range(self.num_envs)]
        return observation

    def _game_seeds(self) -> list[int]:
        """Return SB3's seeds, of 32 bits, in the emulator's 31."""
        return [int(seed) & 0x7FFFFFFF for seed in self._seeds if seed is not None]

    def step_async(self, actions: np.ndarray) -> None:
        self.envs.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observation, reward, terminated, truncated, info = self.envs.step_wait()
        done = terminated | truncated
        infos = [self._lives(info, row) for row in range(self.num_envs)]
        for row in np.flatnonzero(done):
            over = bool(info["game_over"][row])
            infos[row]["terminal_observation"] = info["final_obs"][row] if over else observation[row]
            infos[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        for row in np.flatnonzero(info["_episode"]):
            infos[row]["episode"] = {
                "r": round(float(info["episode"]["r"][row]), 6),
                "l": int(info["episode"]["l"][row]),
                "t": round(time.monotonic() - self._began, 6),
            }
        paid = np.sign(reward) if self.clip_reward else reward
        return observation, paid.astype(np.float32), done, infos

    @staticmethod
    def _lives(info: dict[str, Any], row: int) -> dict[str, Any]:
        return {"lives": int(info["lives"][row])} if "lives" in info else {}

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """None for each: batches of games cannot be watched; ``neurocoder.envs.make_atari`` makes one that can."""
        return [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the batch, once for each index: the environments have none of their own."""
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Raise: there is no environment by itself whose attribute could be set."""
        raise EnvError(f"set_attr({attr_name!r}): the environments of a native batch have no attributes")

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Raise: there is no environment by itself whose method could be called."""
        raise EnvError(f"env_method({method_name!r}): the environments of a native batch have no methods")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Return whether episodes are counted as `wrapper_class` would: True for SB3's Monitor only."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]


def make_atari(
    env_id: str,
    n_envs: int = 1,
    *,
    seed: int | None = None,
    protocol: AtariProtocol | str = "machado2018",
    num_threads: int = 1,
    clip_reward: bool = True,
) -> SB3VecEnv:
    """Return `n_envs` games of `env_id` for SB3's CnnPolicy, under `protocol` (an AtariProtocol or a preset's name).

    Observations are uint8 [stack, size, size], frames stacked already. SB3's ``make_atari_env`` with
    ``VecFrameStack(…, 4)`` is protocol ``dqn2015`` but for what ``neurocoder.envs.NATIVE_DIFFERENCES`` names, FIRE at
    every life, and no frame cap.

    Raises
    ------
    EnvError
        `env_id` is no Atari game, or the protocol's observations are no images for SB3 (neurocoder2020).
    ConfigError
        `protocol` is no preset; near names are offered.
    """
    if not is_atari(env_spec(env_id)):
        raise EnvError(f"{env_id!r} is not an Atari game; SB3's make_vec_env makes all others")
    if isinstance(protocol, str):
        protocol = get_protocol(protocol)
    if protocol.normalisation != "scale":
        raise EnvError(
            f"protocol {protocol.name!r}: its frames are normalised to floats, which SB3's CnnPolicy does not take "
            f"for images; use another protocol"
        )
    envs = SB3VecEnv(
        make_vec(env_id, n_envs, protocol=protocol, num_threads=num_threads), clip_reward=clip_reward
    )
    if seed is not None:
        envs.seed(seed)
    return envs
