"""Environments: Atari under a recorded protocol, supervised tasks, and any installed Gymnasium id, as batches."""

from neurocoder.envs.atari import (
    ENGINES,
    NATIVE_DIFFERENCES,
    PROTOCOLS,
    AtariEnvs,
    AtariProtocol,
    get_protocol,
    make_atari,
)
from neurocoder.envs.continual_atari import check_games, choose, parse_games
from neurocoder.envs.pictures import AtariCamera
from neurocoder.envs.random_play import random_observations
from neurocoder.envs.registry import EnvError, env_ids, env_spec, is_atari, is_game_sequence, is_task
from neurocoder.envs.replayable import GameState, ReplayableEnvs, SeededEpisodes, episode_seed
from neurocoder.envs.tasks import EPISODE, Curriculum, Place, Task, TaskVectorEnv, make_tasks
from neurocoder.envs.vector import EpisodeRecorder, make_vec
from neurocoder.envs.watching import WatchedGame, make_watched

__all__ = [
    "ENGINES",
    "EPISODE",
    "NATIVE_DIFFERENCES",
    "PROTOCOLS",
    "AtariCamera",
    "AtariEnvs",
    "AtariProtocol",
    "Curriculum",
    "EnvError",
    "EpisodeRecorder",
    "GameState",
    "Place",
    "ReplayableEnvs",
    "SeededEpisodes",
    "Task",
    "TaskVectorEnv",
    "WatchedGame",
    "check_games",
    "choose",
    "env_ids",
    "env_spec",
    "episode_seed",
    "get_protocol",
    "is_atari",
    "is_game_sequence",
    "is_task",
    "make_atari",
    "make_tasks",
    "make_vec",
    "make_watched",
    "parse_games",
    "random_observations",
]
