"""``neurocoder replay``."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

replay = App(name="replay", help="Check, render or export recorded episodes.")

Trust = Annotated[bool, Parameter(negative="")]


@replay.command
def verify(*episodes: Path, trust: Trust = False) -> int:
    """Check episodes against their checksums, and play them again from seed and actions.

    Parameters
    ----------
    episodes
        Folders of recorded episodes, or folders of which all episodes are checked.
    trust
        Allow an episode to import the module that its environment id names.
    """
    from neurocoder.runs.replay.emulation import verify as check
    from neurocoder.runs.replay.episode import RecordedEpisode

    for folder in _folders(episodes):
        print(f"{folder}  {check(RecordedEpisode.open(folder), trust=trust)}")
    return 0


@replay.command
def render(*episodes: Path, trust: Trust = False) -> int:
    """Make the pictures of episodes anew from seed and actions, if that shows what was recorded.

    Parameters
    ----------
    episodes
        Folders of recorded episodes, or folders of which all episodes are rendered.
    trust
        Allow an episode to import the module that its environment id names.
    """
    from neurocoder.runs.replay.emulation import render as make
    from neurocoder.runs.replay.episode import RecordedEpisode

    for folder in _folders(episodes):
        print(f"{folder}  {make(RecordedEpisode.open(folder), trust=trust):,} pictures")
    return 0


@replay.command
def export(episode: Path, out: Path, /, *, second: Path | None = None) -> int:
    """Write an episode into one file that needs nothing else: .html opens in any browser; or .mp4, .gif.

    Parameters
    ----------
    episode
        Folder of the recorded episode.
    out
        The file to write: its ending says what it is.
    second
        Another episode to compare with, in .html.
    """
    from neurocoder.errors import ConfigError
    from neurocoder.runs.replay.episode import RecordedEpisode

    writers = {".html": _export_page, ".mp4": _export_video, ".gif": _export_video}
    if out.suffix not in writers:
        raise ConfigError(f"{out}: expected a file that ends in {', '.join(writers)}")
    if second is not None and out.suffix != ".html":
        raise ConfigError(f"--second {second}: two episodes are compared in .html only")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")
    opened = [RecordedEpisode.open(folder) for folder in (episode, second) if folder is not None]
    try:
        size = writers[out.suffix](opened, out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror or error}") from None
    print(f"{out}  {size / 1e6:.2f} MB")
    return 0


@replay.command
def minari(name: str, /, *episodes: Path, root: Path | None = None, trust: Trust = False) -> int:
    """Write episodes as a Minari data set, for offline learning: what was seen, done and paid.

    Parameters
    ----------
    name
        Of the data set, e.g. pong/a3c-v0.
    episodes
        Folders of recorded episodes, or folders of which all episodes are taken.
    root
        Where data sets are kept, if not where Minari keeps them.
    trust
        Allow an episode to import the module that its environment id names.
    """
    from neurocoder.runs.replay.datasets import export_dataset
    from neurocoder.runs.replay.episode import RecordedEpisode

    opened = [RecordedEpisode.open(folder) for folder in _folders(episodes)]
    steps = export_dataset(name, opened, root, trust=trust)
    print(f"{name}  {len(opened)} episodes, {steps:,} steps")
    return 0


def _export_page(episodes: list, out: Path) -> int:
    from neurocoder.runs.replay.page import export_page

    return export_page(episodes, out)


def _export_video(episodes: list, out: Path) -> int:
    from neurocoder.runs.replay.video import export_video

    return export_video(episodes[0], out)


def _folders(given: tuple[Path, ...]) -> list[Path]:
    from neurocoder.errors import ConfigError
    from neurocoder.runs.replay.episode import find_episodes

    if not given:
        raise ConfigError("expected folders of recorded episodes (neurocoder record makes them)")
    folders = []
    for path in given:
        found = list(find_episodes(path))
        if not found:
            raise ConfigError(f"{path}: no recorded episode there (no episode.json)")
        folders += found
    return folders
