"""``neurocoder record``."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def record(
    run: str,
    /,
    *,
    episodes: int = 1,
    checkpoint: str = "last",
    seed: int = 0,
    task: int | None = None,
    deterministic: Annotated[bool, Parameter(negative="")] = False,
    mask_slot: tuple[str, ...] = (),
    trace: Literal["mean", "full"] = "mean",
    stuck_after: int | None = None,
    device: str = "cpu",
    logs: Path = Path("logs"),
    env: str | None = None,
    preset: str | None = None,
    trust: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Record whole episodes: pictures, actions, values, and which stored program acts at each moment.

    Each is a folder below the run's episodes/; `neurocoder watch` shows them.

    Parameters
    ----------
    run
        Folder of the run; or a zip saved by Stable-Baselines3 (Box observations), with --env and --trust.
    episodes
        How many.
    checkpoint
        best, last, or a number of agent steps.
    seed
        Seed of the first episode, its game and its actions; the next ones have the next numbers.
    task
        Which game of a run on games one after the other, from 0.
    deterministic
        Take the most probable action instead of sampling.
    mask_slot
        A slot of the program memory that the agent has to do without: P or actor:P of the actor, critic:P of
        the critic. May be given several times.
    trace
        mean: attention over slots, averaged over the components of the program; full: of every component.
    stuck_after
        Cut a game after this many agent steps without a reward or a lost life; 0: never. As the run's
        configuration has it unless given.
    device
        cpu, cuda or cuda:N.
    logs
        Folder of all runs.
    env
        Environment id to play a zip in.
    preset
        Atari protocol to play a zip under: machado2018 (default), dqn2015 or neurocoder2020.
    trust
        Allow the run to import the module that its environment id names; a zip is only read with it, as that
        runs the code in its pickles.
    """
    from neurocoder.errors import ConfigError, require
    from neurocoder.runs.preparation import check_device
    from neurocoder.runs.replay.agents import open_run, open_zip
    from neurocoder.runs.replay.recorder import Recording, free_name, record_episode

    require(episodes >= 1, "--episodes", episodes, ">= 1")
    require(stuck_after is None or stuck_after >= 0, "--stuck-after", stuck_after, ">= 0")
    require(seed >= 0 and seed + episodes <= 2**31, "--seed", seed, "in [0, 2^31 - episodes]")
    check_device(device)
    if run.endswith(".zip"):
        if checkpoint != "last" or mask_slot or task is not None:
            raise ConfigError(
                "--checkpoint, --mask-slot and --task are for runs, not for zips of Stable-Baselines3"
            )
        agent = open_zip(
            Path(run),
            logs,
            env=env,
            preset=preset,
            deterministic=deterministic,
            device=device,
            trust=trust,
        )
    else:
        if env is not None or preset is not None:
            raise ConfigError("--env and --preset are for zips of Stable-Baselines3; a run knows its own")
        agent = open_run(
            run,
            logs,
            checkpoint=checkpoint,
            task=task,
            masked=mask_slot,
            deterministic=deterministic,
            device=device,
            trust=trust,
        )
    recording = Recording(agent.stuck_after if stuck_after is None else stuck_after, trace == "full")
    game = agent.make_game()
    try:
        for number in range(seed, seed + episodes):
            folder = free_name(agent.episodes, agent.episode_name(number))
            info = record_episode(agent.make_player(number), game, folder, agent.info(number), recording)
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            print(
                f"{folder}  return {info.raw_return:g}, {info.length:,} steps, {info.ended}, {size / 1e6:.2f} MB"
            )
    finally:
        game.close()
    print(f"neurocoder watch {agent.episodes.parent}")
    return 0
