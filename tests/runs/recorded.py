"""A small run whose agent nobody trained, and episodes recorded from it."""

from pathlib import Path

from neurocoder.runs.checkpoint import Retention, save_checkpoint
from neurocoder.runs.config import resolve
from neurocoder.runs.preparation import prepare
from neurocoder.runs.replay.agents import open_run
from neurocoder.runs.replay.recorder import Recording, record_episode
from neurocoder.runs.run import Run


def make_run(logs: Path, env: str = "ALE/Pong-v5", **flags: object) -> Path:
    """Write a run with one checkpoint, of an untrained agent with 8 slots, and return its folder."""
    overrides = {"policy.head_config.slots": 8, "calibration_steps": 0, "precision": "fp32", **flags}
    config, policy = prepare(resolve(env, None, overrides, "test"))
    run = Run.create(logs, config)
    save_checkpoint(run.checkpoints, 100, policy.state_dict(), {}, {"agent_steps": 100}, Retention(1, 0))
    return run.path


def record(run: Path, seed: int, stuck_after: int = 100, **options: object) -> Path:
    """Record the episode of `seed`; Pong's is cut when nothing has happened for `stuck_after` agent steps."""
    agent = open_run(str(run), run.parent, **options)
    game = agent.make_game()
    try:
        folder = agent.episodes / agent.episode_name(seed)
        record_episode(agent.make_player(seed), game, folder, agent.info(seed), Recording(stuck_after))
    finally:
        game.close()
    return folder
