"""The best, the median and the worst game of an evaluation, recorded while it is played."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from neurocoder.agents.player import Step
from neurocoder.runs.replay.agents import Agent
from neurocoder.runs.replay.emulation import emulate
from neurocoder.runs.replay.episode import EpisodeInfo
from neurocoder.runs.replay.recorder import EpisodeWriter, free_name, how_it_ended, rows_of

PICKS = ("best", "median", "worst")


class EvaluationRecorder:
    """Watches the steps of an evaluation whose games began with `seeds`, and keeps three of its games.

    Only the first game of each environment has a seed of its own and can be brought back; with up to
    ``scoring.MAX_GAMES`` episodes that is every game. What is said of each is spooled to disk while it is played; the
    pictures of those that are kept are made from seed and actions when all is over. Use as a context manager.
    """

    def __init__(self, agent: Agent, seeds: Sequence[int]) -> None:
        self._agent = agent
        self._error: OSError | None = None
        self._scratch = agent.episodes / ".evaluation.part"
        if self._scratch.exists():
            shutil.rmtree(self._scratch)  # of an evaluation that was killed
        self._infos: list[EpisodeInfo] = [agent.info(seed) for seed in seeds]
        self._writers = [EpisodeWriter(self._scratch / str(seed)) for seed in seeds]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()
        if self._scratch.exists():
            shutil.rmtree(self._scratch)

    def __call__(self, step: Step) -> None:
        """Add a step of all games; those whose first episode is over are left out.

        Never raises for want of space: :meth:`keep` tells of it.
        """
        if self._error is None:
            try:
                self._add(step)
            except OSError as error:
                self._error = error

    def _add(self, step: Step) -> None:
        playing = [game for game, info in enumerate(self._infos) if not info.ended]
        if not playing:
            return
        rows = rows_of(step)
        for game in playing:
            writer, info = self._writers[game], self._infos[game]
            if self._agent.protocol is not None and writer.spool.length == 0:
                shown = int(step.info["episode_frame_number"][game])
                info = replace(info, start_frames=shown - self._agent.protocol.frame_skip)
            writer.add(rows, game)
            self._infos[game] = replace(info, ended=how_it_ended(step, game))

    def keep(self) -> list[Path]:
        """Write the picks among the games that have ended, and return their folders.

        Raises
        ------
        OSError
            There was no space for them.
        """
        if self._error is not None:
            raise self._error
        ended = [game for game, info in enumerate(self._infos) if info.ended]
        returns = {
            game: float(np.sum(self._writers[game].spool["reward"], dtype=np.float64)) for game in ended
        }
        order = sorted(ended, key=lambda game: (-returns[game], game))
        chosen: dict[int, str] = {}
        for pick, place in zip(PICKS, (0, (len(order) - 1) // 2, len(order) - 1), strict=True):
            if order:
                chosen.setdefault(order[place], pick)
        return [self._write(game, pick) for game, pick in chosen.items()]

    def _write(self, game: int, pick: str) -> Path:
        writer, info = self._writers[game], replace(self._infos[game], picked=pick)
        actions, rewards = writer.spool["action"], writer.spool["reward"]
        same = True
        for step, moment in enumerate(emulate(info, actions, trust=self._agent.trust)):
            writer.add_frame(moment.picture)
            same = same and (step == 0 or np.float32(moment.reward) == rewards[step - 1])
        if not same:  # then the pictures are of another episode
            writer.drop_frames()
        writer.finish(replace(info, action_names=self._agent.action_names, replayable=bool(same)))
        folder = free_name(self._agent.episodes, self._agent.episode_name(info.seed))
        return writer.folder.rename(folder)
