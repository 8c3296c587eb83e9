"""``neurocoder reproduce``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def reproduce(
    name: str,
    /,
    *,
    quick: Annotated[bool, Parameter(negative="")] = False,
    seeds: int | None = None,
    jobs: int = 2,
    only: Annotated[list[str] | None, Parameter(negative="")] = None,
    json: Path | None = None,
    logs: Path = Path("logs"),
) -> int:
    """Train what a table or figure of the paper needs, and print ours beside the paper's, with controls.

    What is finished is kept in LOGS/reproduce/NAME and not run again; what was interrupted goes on.

    Parameters
    ----------
    name
        table2, table3, table4, table6, fig4, fig5, fig6, fig8; or ntm-copy, ntm-repeat-copy, ntm-recall, ntm-ngrams, ntm-sort.
    quick
        A look in a few minutes: few updates, one seed, in a folder of its own.
    seeds
        Runs of each setting.
    jobs
        Runs side by side, one thread each.
    only
        The setting with this name, or else those whose name contains it; may be given several times.
    json
        Write the table into this file, too.
    logs
        Folder of all runs.
    """
    from neurocoder.errors import ConfigError, NeurocoderError, require
    from neurocoder.runs.reproduce.catalogue import experiment, is_count

    require(jobs >= 1, "--jobs", jobs, ">= 1")
    require(seeds is None or seeds >= 1, "--seeds", seeds, ">= 1")
    if json is not None and not json.parent.is_dir():
        raise ConfigError(f"--json {json}: there is no folder {json.parent}")
    if is_count(name):
        return _counts(json, _folder(logs, name))
    from neurocoder.runs.reproduce.experiment import named, read_rows
    from neurocoder.runs.reproduce.report import report, summary
    from neurocoder.runs.reproduce.trainings import check, only_writer, run_missing

    found = experiment(name)
    if quick:
        settings = [replace(s, overrides={**s.overrides, **found.quick}) for s in found.settings]
        found = replace(found, settings=settings, seeds=1)
    chosen = named(found.settings, only) if only else None
    check(found)
    folder = _folder(logs, f"{name}-quick" if quick else name)
    with only_writer(folder):
        found.prepare()
        try:
            run_missing(found, folder, seeds or found.seeds, jobs, chosen)
        except NeurocoderError:
            print(report(found, folder))  # what there is, all the same
            raise
        print(report(found, folder))
    print(f"rows, CSV and pictures: {folder}")
    if json is not None:
        _write(json, summary(found, read_rows(folder)))
    return 0


def _folder(logs: Path, name: str) -> Path:
    """Return the folder of an experiment, which is made."""
    from neurocoder.errors import ConfigError

    folder = logs / "reproduce" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write logs in {logs}: {error.strerror or error}; choose another --logs"
        ) from None
    return folder


def _counts(json: Path | None, folder: Path) -> int:
    """Print what is counted and not trained, and write it into `folder`."""
    from dataclasses import asdict
    from json import dumps

    from neurocoder.runs.reproduce.table6 import as_csv, markdown, table6

    rows = table6()
    print(markdown(rows))
    counts = [{**asdict(row), "count": row.computed} for row in rows]
    (folder / "table.md").write_text(markdown(rows), "utf-8")
    (folder / "rows.csv").write_text(as_csv(rows), "utf-8")
    (folder / "summary.json").write_text(dumps(counts, indent=1) + "\n", "utf-8")
    print(f"table, CSV and JSON: {folder}")
    if json is not None:
        _write(json, counts)
    return 0


def _write(file: Path, rows: Any) -> None:
    import json

    file.write_text(json.dumps({"rows": rows}, indent=1) + "\n", "utf-8")
