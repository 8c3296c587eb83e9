"""How fast the A3C trainer is, against what it is made of and against Stable-Baselines3, on ALE/Pong-v5.

What is measured, as agent steps per second:

* the trainer itself, as ``neurocoder train`` runs it but for trackers and checkpoints: real worker processes,
  from the moment when every one of them is past its first updates;
* its peers (``neurocoder.runs.bench.peers``): the network alone, the emulators alone, Stable-Baselines3's A2C.

All of them are measured in every round, in an order drawn anew, so that what the machine does meanwhile meets
all alike; a preset's heads one right after the other, since they differ by less than a machine does from one minute to
the next. A row holds the median over the rounds. Where the trainer's time goes is what its workers report.
"""

import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from neurocoder.agents.hogwild import SharedModel
from neurocoder.agents.processes import processors
from neurocoder.agents.supervisor import train
from neurocoder.agents.worker import Record
from neurocoder.policies import Policy
from neurocoder.runs.a3c_session import train_spec
from neurocoder.runs.bench import layer, peers
from neurocoder.runs.config import TrainConfig, resolve
from neurocoder.runs.preparation import environment_factory, prepare

ENV = "ALE/Pong-v5"
SKIPPED = 2
"""Updates of every worker before the clock starts."""
PARTS = ("emulation", "acting", "learning", "sharing")
"""What a worker's time goes into, as its records have it: ``time/emulation`` and so on."""
START_UP = 5.0
"""Seconds, roughly, until a measurement's processes are warm; for the estimate only."""
SUBPROC_START_UP = 25.0
SEED = 0
SB3 = "stable-baselines3"
VEC_ENVS = ("DummyVecEnv", "SubprocVecEnv")


@dataclass(frozen=True, slots=True)
class Preset:
    """A recipe, and what is different from it."""

    recipe: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "a3g": Preset("neurocoder2020"),
    "a3c": Preset("a3c"),
    "nature": Preset("a3c", {"policy.encoder": "nature", "policy.core": "none"}),
}
"""The paper's network with LSTM 512, the A3C network with LSTM 256, the DQN network without a core."""


def configuration(preset: str, head: str, workers: int | None, precision: str) -> TrainConfig:
    """Return what ``neurocoder train`` is told for `preset` with `head`; `workers` None is its default."""
    chosen = PRESETS[preset]
    overrides = {**chosen.overrides, "policy.head": head, "precision": precision}
    if workers is not None:
        overrides["a3c.workers"] = workers
    if head != resolve(ENV, chosen.recipe, {}, preset).policy.head:
        overrides["policy.head_config"] = {}  # the recipe's are another head's
    return resolve(ENV, chosen.recipe, overrides, preset)


# --------------------------------------------------------------------------------------- the trainer


class Memory(NamedTuple):
    """Mean over the workers, MiB: resident, and resident with shared pages divided among their users."""

    rss_mib: float
    pss_mib: float


class Trial(NamedTuple):
    """One measurement. The trainer's tell where a worker's time went, in µs per agent step, and its memory."""

    steps_per_second: float
    breakdown: dict[str, float] | None = None
    memory: Memory | None = None


class Stopwatch:
    """Takes the records of a run as they come, and tells its speed once all workers are warm.

    A worker's rate is that of the updates between two of its records, so none is counted in part.
    """

    def __init__(self, workers: int, steps_per_record: int) -> None:
        self._steps = steps_per_record
        self._skipped = [0] * workers
        self._arrivals: list[list[tuple[float, Mapping[str, float]]]] = [[] for _ in range(workers)]

    def add(self, worker: int, now: float, metrics: Mapping[str, float]) -> None:
        """Note a record that came at `now`, in seconds."""
        if min(self._skipped) < SKIPPED:
            self._skipped[worker] += 1
        else:
            self._arrivals[worker].append((now, metrics))

    @property
    def spans(self) -> list[float]:
        """Seconds from each worker's first record that counts to its last."""
        return [came[-1][0] - came[0][0] if came else 0.0 for came in self._arrivals]

    @property
    def steps_per_second(self) -> float:
        """Agent steps per second of all workers together; every span must be longer than 0."""
        return sum(
            (len(came) - 1) * self._steps / span
            for came, span in zip(self._arrivals, self.spans, strict=True)
        )

    def breakdown(self) -> dict[str, float] | None:
        """Return µs of a worker per agent step: the whole, its parts, and the rest; None if records lack them."""
        counted = [metrics for came in self._arrivals for _, metrics in came[1:]]
        if not all(f"time/{part}" in metrics for metrics in counted for part in PARTS):
            return None
        scale = 1e6 / (len(counted) * self._steps)
        parts = {part: scale * sum(metrics[f"time/{part}"] for metrics in counted) for part in PARTS}
        whole = scale * sum(self.spans)
        return {**parts, "rest": whole - sum(parts.values()), "whole": whole}


def train_for(config: TrainConfig, policy: Policy, seconds: float) -> Trial:
    """Train until every worker was measured for `seconds`; no process is left when this returns or raises."""
    endless = replace(config, steps=2**62, checkpoint_every=2**62, max_restarts=0)
    spec = train_spec(endless, policy, environment_factory(config))
    stopwatch = Stopwatch(config.a3c.workers, config.a3c.steps_per_rollout)
    events = train(spec, SharedModel(policy, config.a3c), threading.Event())
    assert isinstance(events, Generator)
    with closing(events):  # which ends the workers
        for event in events:
            if isinstance(event, Record):
                stopwatch.add(event.worker, time.perf_counter(), event.metrics)
                if min(stopwatch.spans) >= seconds:
                    break
        return Trial(stopwatch.steps_per_second, stopwatch.breakdown(), workers_memory())


def workers_memory() -> Memory | None:
    """Return the memory of the workers that run now; None without any, or where the system does not tell."""
    pids = [p.pid for p in multiprocessing.active_children() if p.name.startswith("worker-")]
    try:
        files = [Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8") for pid in pids]
    except OSError:
        return None
    if not files:
        return None
    return Memory(*(statistics.mean(_kib(text, name) for text in files) / 1024 for name in ("Rss", "Pss")))


def _kib(smaps: str, name: str) -> int:
    """Return the number in a line like ``Rss:    1234 kB``."""
    (line,) = (line for line in smaps.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


# ------------------------------------------------------------------------------- what is compared


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to be measured, and what its row says besides the numbers."""

    label: str
    row: dict[str, Any]
    measure: Callable[[float], Trial]
    """From seconds to a trial."""
    start_up: float = START_UP
    group: str = ""
    """Contenders of the same group are measured one right after the other; those without one stand alone."""


def contenders(
    presets: list[str], heads: list[str], workers: int | None, precision: str, *, sb3: bool = True
) -> list[Contender]:
    """Return all that is to be measured, trainers first.

    Whatever can be wrong with it shows here, before anything is measured.
    """
    trainers, networks, emulators = [], [], []
    for preset in presets:
        for head in heads:
            config, policy = prepare(configuration(preset, head, workers, precision))
            trainers.append(_trainer(preset, config, policy))
            networks.append(_network(preset, config, policy))
        emulators.append(_emulators(preset, config))
    scaling = []
    if "a3c" in presets and trainers[0].row["workers"] > 1:
        scaling.append(_trainer("a3c", *prepare(configuration("a3c", heads[0], 1, precision))))
    baselines = [_baseline(vec_env) for vec_env in VEC_ENVS] if sb3 else []
    return [*trainers, *scaling, *networks, *emulators, *baselines]


def why_no_sb3() -> str | None:
    """Return why Stable-Baselines3 cannot be measured, in one line; None if it is there."""
    if find_spec("stable_baselines3") is not None:  # without importing it
        return None
    return f"{SB3} is not installed, so it has no row: pip install {SB3}"


def _settings(config: TrainConfig) -> dict[str, Any]:
    a3c = config.a3c
    return {
        "workers": a3c.workers,
        "envs_per_worker": a3c.envs_per_worker,
        "n_steps": a3c.n_steps,
        "precision": config.precision,
    }


def _trainer(preset: str, config: TrainConfig, policy: Policy) -> Contender:
    head = config.policy.head
    return Contender(
        f"trainer {preset} {head}, workers: {config.a3c.workers}",
        {"preset": preset, "head": head, **_settings(config)},
        lambda seconds: train_for(config, policy, seconds),
        group=f"trainer {preset}",
    )


def _peer(name: str, of: dict[str, Any], work: peers.Work, n: int, start_up: float = START_UP) -> Contender:
    """Return a peer's contender; its row has no preset and no head: those are the trainer's."""
    return Contender(
        " ".join([name, *(str(value) for value in of.values() if isinstance(value, str))]),
        {"preset": None, "head": None, "peer": name, **of},
        lambda seconds: Trial(peers.rate_of(work, n, seconds)),
        start_up,
    )


def _network(preset: str, config: TrainConfig, policy: Policy) -> Contender:
    space, a3c = policy.observation_space, config.a3c
    assert isinstance(space, gym.spaces.Box)
    work = peers.Network(
        space, policy.action_space, config.policy, a3c.n_steps, a3c.envs_per_worker, config.precision
    )
    of = {"of_preset": preset, "of_head": config.policy.head, **_settings(config)}
    return _peer("network", of, work, a3c.workers)


def _emulators(preset: str, config: TrainConfig) -> Contender:
    work = peers.Emulators(environment_factory(config), config.a3c.envs_per_worker)
    settings = {name: _settings(config)[name] for name in ("workers", "envs_per_worker")}
    return _peer("emulators", {"of_preset": preset, **settings}, work, config.a3c.workers)


def _baseline(vec_env: str) -> Contender:
    work = peers.SB3A2C(vec_env)
    start_up = SUBPROC_START_UP if vec_env == "SubprocVecEnv" else START_UP
    of = {"vec_env": vec_env, "games": work.games, "threads": work.threads}
    return _peer(SB3, of, work, 1, start_up)


# ------------------------------------------------------------------------------------- rounds and rows


def estimate(compared: list[Contender], repeats: int, seconds: float) -> float:
    """Return roughly how many seconds all rounds take."""
    return repeats * sum(contender.start_up + seconds for contender in compared)


def rounds(
    compared: list[Contender],
    repeats: int,
    seconds: float,
    announce: Callable[[int, Contender], object] = lambda done, contender: None,
) -> Iterator[tuple[Contender, Trial]]:
    """Measure everything once in each round, groups and their members in an order drawn anew; yield what it was, and the trial.

    `announce` is called before each trial, with the number of those done.
    """
    order = random.Random(SEED)
    together: dict[str, list[Contender]] = {}
    for contender in compared:
        together.setdefault(contender.group or contender.label, []).append(contender)
    groups, done = list(together.values()), 0
    for _ in range(repeats):
        for group in order.sample(groups, len(groups)):
            for contender in order.sample(group, len(group)):
                announce(done, contender)
                yield contender, contender.measure(seconds)
                done += 1


def make_row(row: Mapping[str, Any], trials: list[Trial]) -> dict[str, Any]:
    """Return `row` with the median rate, the slowest and the fastest.

    Breakdown and memory are those of the trial with the median rate (of an even number: the slower of the
    two in the middle), so that the parts sum to their whole.
    """
    rates = [trial.steps_per_second for trial in trials]
    middle = sorted(trials, key=lambda trial: trial.steps_per_second)[(len(trials) - 1) // 2]
    numbers: dict[str, Any] = {
        "steps_per_second": statistics.median(rates),
        "steps_per_second_low": min(rates),
        "steps_per_second_high": max(rates),
        "repeats": len(trials),
    }
    if row["preset"] is not None:
        memory = middle.memory
        numbers |= {"breakdown": middle.breakdown, "memory": memory and memory._asdict()}
    return {**row, **numbers}


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each preset and head what the trainer's median rate is of others' median rates.

    =================== ============================================================================
    of_network          trainer / the network's own rate
    of_emulators        trainer / the emulators' own rate
    of_sb3              trainer / Stable-Baselines3's A2C, the faster of its two vector environments
    cost_against_linear 1 − trainer / trainer with linear heads of the same preset
    scaling             trainer / trainer with one worker
    =================== ============================================================================

    None stands for what was not measured.
    """
    trainers = [row for row in rows if row["preset"] is not None]
    most = max(row["workers"] for row in trainers)
    result = []
    for row in trainers:
        if row["workers"] < most:
            continue
        preset, head = row["preset"], row["head"]
        linear = None if head == "linear" else _rate(trainers, preset=preset, head="linear", workers=most)
        single = _rate(trainers, preset=preset, head=head, workers=1) if most > 1 else None
        share = _over(row, linear)
        result.append(
            {
                "preset": preset,
                "head": head,
                "of_network": _over(row, _rate(rows, peer="network", of_preset=preset, of_head=head)),
                "of_emulators": _over(row, _rate(rows, peer="emulators", of_preset=preset)),
                "of_sb3": _over(row, _rate(rows, peer=SB3)),
                "cost_against_linear": None if share is None else 1 - share,
                "scaling": _over(row, single),
            }
        )
    return result


def _rate(rows: list[dict[str, Any]], **wanted: Any) -> float | None:
    """Return the highest median rate of the rows that have all `wanted` values; None without one."""
    rates = (row["steps_per_second"] for row in rows if wanted.items() <= _scalars(row).items())
    return max(rates, default=None)


def _scalars(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, dict)}


def _over(row: dict[str, Any], rate: float | None) -> float | None:
    return None if rate is None else row["steps_per_second"] / rate


def protocol(seconds: float, repeats: int) -> dict[str, Any]:
    """Return what the numbers mean, to be kept beside them; to be called before measuring."""
    return {
        "env": ENV,
        "seconds": seconds,
        "repeats": repeats,
        "seed": SEED,
        "processors": processors(),
        "load": layer.load(),
        "unit": "agent steps per second, 4 frames each, all processes together",
        "spread": "median over rounds; low and high are the slowest and the fastest round",
        "trainer": f"as neurocoder train, from when every worker has had {SKIPPED} updates",
        "network": "forward and backward at the trainer's batch and precision, one thread a process",
        "emulators": "ale-py's vector environment, random actions, the trainer's games and threads",
        SB3: "A2C CnnPolicy, defaults, AtariWrapper, 4 frames, sticky 0.25, cpu",
        "breakdown": "µs of one worker per agent step, in the round of the median rate",
        "memory": "mean over the workers at the end of that round; pss divides shared pages",
    }


def versions() -> dict[str, str]:
    """Return the versions on which the numbers depend; Stable-Baselines3's is missing where that is."""
    names = ["numpy", "gymnasium", "ale-py", *([] if why_no_sb3() else [SB3])]
    return {**layer.versions(), **{name: metadata.version(name) for name in names}}
