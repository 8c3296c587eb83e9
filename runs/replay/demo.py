"""The agent that comes with the package: trained, small, and shown by ``neurocoder watch --demo``."""

from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from neurocoder.errors import ConfigError
from neurocoder.runs.replay.agents import open_run
from neurocoder.runs.replay.recorder import Recording, record_episode

SEED = 1
"""Of the game that is shown: 23 points, near the mean of 26.8."""


def record_demo(logs: Path) -> Path:
    """Let the agent play a game, unless it has been recorded in `logs` before; return the episode's folder.

    Raises
    ------
    ConfigError
        `logs` cannot be written.
    """
    with as_file(files("neurocoder.runs") / "demo") as run:
        agent = open_run(str(run), logs)
        agent = replace(agent, episodes=logs / agent.env.replace("/", "-") / "demo" / "episodes")
        folder = agent.episodes / agent.episode_name(SEED)
        if (folder / "episode.json").is_file():
            return folder
        try:
            agent.episodes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write in {logs}: {error.strerror or error}; name another folder"
            ) from None
        print(f"the demo agent plays {agent.env}, seed {SEED} …", flush=True)
        game = agent.make_game()
        try:
            recording = Recording(agent.stuck_after)
            info = record_episode(agent.make_player(SEED), game, folder, agent.info(SEED), recording)
        finally:
            game.close()
    print(f"it ended at {info.raw_return:g} after {info.length:,} steps; recorded in {folder}")
    return folder
