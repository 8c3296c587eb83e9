"""Agent steps per second of a game that is played, and of the same game recorded: what recording costs.

========= ================================================================================
played    the demo agent plays, one game, nothing is kept
recorded  the same, and every picture, decision and outcome is written as an episode is
========= ================================================================================

While something trains, the evaluator's games are recorded without pictures, which are made from seed and actions when a
game is kept: that costs less than what is measured here.
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path

from neurocoder.envs import WatchedGame
from neurocoder.runs.bench.rounds import Compared, Work
from neurocoder.runs.replay.agents import Agent, open_run
from neurocoder.runs.replay.recorder import EpisodeWriter, rows_of

SEED = 0
STEPS = 50
"""Of one piece of work."""


def demo_agent() -> Agent:
    """Return the agent that comes with the package."""
    return open_run(str(files("neurocoder.runs") / "demo"), Path())


def played(game: WatchedGame, agent: Agent) -> Work:
    """Return some steps of `game`."""
    steps = agent.make_player(SEED).play(game, [SEED])

    def work() -> int:
        for _ in range(STEPS):
            next(steps)
        return STEPS

    return work


def recorded(game: WatchedGame, agent: Agent, writer: EpisodeWriter) -> Work:
    """Return some steps of `game`, which `writer` writes."""
    steps = agent.make_player(SEED).play(game, [SEED])

    def work() -> int:
        for _ in range(STEPS):
            step = next(steps)
            for picture in game.take():
                writer.add_frame(picture)
            writer.add(rows_of(step), 0)
        return STEPS

    return work


@contextmanager
def works() -> Iterator[dict[str, Compared]]:
    """Yield what is measured; nothing of what is recorded is left."""
    agent = demo_agent()
    with (
        tempfile.TemporaryDirectory(prefix="neurocoder-bench-") as folder,
        EpisodeWriter(Path(folder) / "episode") as writer,
        closing(agent.make_game()) as one,
        closing(agent.make_game()) as other,
    ):
        yield {
            "recorded": Compared(recorded(one, agent, writer), "played"),
            "played": Compared(played(other, agent), "played"),
        }
