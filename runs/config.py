"""What a run is told: one typed configuration, from recipe files, flags and ``--set`` overrides.

Values come from TOML and are checked against the dataclasses' types (strictly: "2" is no integer) and then
by the dataclasses themselves (ranges). An unknown key is an error that offers the nearest known one.
"""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pydantic
import tomli_w
from gymnasium.envs.registration import EnvSpec

from neurocoder.agents.a3c import A3CConfig
from neurocoder.agents.continual_methods import LEARNING_RATES, ContinualConfig, preset
from neurocoder.agents.supervised import SupervisedConfig
from neurocoder.envs import (
    ENGINES,
    AtariProtocol,
    env_spec,
    get_protocol,
    is_atari,
    is_game_sequence,
    is_task,
)
from neurocoder.errors import ConfigError, lookup, near, require
from neurocoder.policies import PolicyConfig
from neurocoder.policies.image_encoder import IMAGE_NETS

AGENTS = ("a3c", "supervised", "continual")
TASK_RECIPES = {
    "Polynomial": "polynomial",
    "Copy": "ntm-copy",
    "RepeatCopy": "ntm-repeat-copy",
    "AssociativeRecall": "ntm-recall",
    "DynamicNGrams": "ntm-ngrams",
    "PrioritySort": "ntm-sort",
}
"""Recipes of tasks, by the name in their ids; all others are images."""
LARGEST = 2**63 - 1
"""Of whole numbers, which the workers' counters hold in 64 bits."""
SPLIT = {"policy.core", "a3c.vtrace", "a3c.envs_per_worker", "a3c.env_groups", "a3c.n_steps"}
"""What decides how many parts a rollout can be split into."""
PRECISIONS = ("auto", "fp32", "bf16")
VECTORIZATIONS = tuple(ENGINES)


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """How an agent is scored while it trains, in a process of its own."""

    every: int = 500_000
    """Agent steps between two evaluations; each is of a checkpoint. 0 switches them off."""
    episodes: int = 10
    """Whole games of one evaluation."""
    deterministic: bool = False
    """Take the most probable action instead of sampling."""
    stuck_after: int = 4_500
    """Agent steps without a reward or a lost life after which a game is cut, and reported as stuck; 0: never."""
    env_options: dict[str, Any] = field(default_factory=dict)
    """Options of the environment in evaluations, over those of training, e.g. split = "test"."""
    record_every: int = 0
    """Agent steps between two evaluations whose best, median and worst game are recorded, to be watched; 0: none."""

    def __post_init__(self) -> None:
        for name in ("every", "stuck_after", "record_every"):
            require(getattr(self, name) >= 0, f"evaluation.{name}", getattr(self, name), ">= 0")
        require(self.episodes >= 1, "evaluation.episodes", self.episodes, ">= 1")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides a training run; ``config.toml`` in the run's folder is its only copy."""

    env: str
    agent: str = "a3c"
    """Learner: a3c, by reward; supervised, by gradient from the targets of a task; or continual, the same for tasks one
    after the other."""
    env_options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment, e.g. chunks = 10. Atari games have a protocol instead."""
    steps: int = 10_000_000
    """Agent steps in all, over all workers. Continual learning counts in passes: its steps follow from them."""
    seed: int = 0
    device: str = "cpu"
    precision: str = "auto"
    """auto, fp32 or bf16; a run's config.toml holds what auto came to."""
    calibration_steps: int = 4_096
    """Agent steps of random play before the first update, not counted in `steps`: what is seen there sets the
    scale of the fresh network's layers or, of an encoder with standardize=true, what pixels are measured from.
    Images only; 0: none."""
    log_every: int = 2_000
    """Agent steps between two rows of progress.csv."""
    checkpoint_every: int = 100_000
    """Agent steps between two checkpoints; one is always written at the end."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept, besides the best."""
    milestone_every: int = 1_000_000
    """Checkpoints at multiples of this many agent steps (the first at or after each) are kept for ever; 0: none."""
    vectorization: str = "native"
    """native: ale-py's vector environment, the fast way; sync: Gymnasium's wrappers, one game after the other,
    slower, but a resumed run goes on in the very game. Environments other than Atari are always sync."""
    max_restarts: int = 3
    """How many dead or hung workers are replaced before the run fails."""
    worker_timeout: float = 10.0
    """Seconds without a sign of life after which a worker counts as hung."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    a3c: A3CConfig = field(default_factory=A3CConfig)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    continual: ContinualConfig = field(default_factory=ContinualConfig)
    protocol: AtariProtocol | None = None

    def __post_init__(self) -> None:
        require(self.agent in AGENTS, "agent", self.agent, f"one of {AGENTS}")
        require(self.precision in PRECISIONS, "precision", self.precision, f"one of {PRECISIONS}")
        require(
            self.vectorization in VECTORIZATIONS,
            "vectorization",
            self.vectorization,
            f"one of {VECTORIZATIONS}",
        )
        for name in ("steps", "log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        for name in ("milestone_every", "max_restarts", "calibration_steps"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(
            self.agent != "a3c" or self.policy.critic,
            "policy.critic",
            self.policy.critic,
            "true with agent a3c",
        )
        games = self.a3c.games_per_rollout
        require(
            self.agent != "a3c" or self.policy.core == "none" or games % self.a3c.minibatches == 0,
            "a3c.minibatches",
            self.a3c.minibatches,
            f"a divisor of the {games} games of a rollout, which a core needs whole",
        )
        require(self.worker_timeout > 0, "worker_timeout", self.worker_timeout, "> 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2^63)")

    @property
    def evaluation_options(self) -> dict[str, Any]:
        """Keyword arguments of the environment in evaluations and recordings."""
        return {**self.env_options, **self.evaluation.env_options}

    @property
    def protocol_hash(self) -> str | None:
        """What a raw score of this run can be compared with: scores of the same hash. None if it is no Atari game."""
        return self.protocol.hash_on(ENGINES[self.vectorization]) if self.protocol else None

    def describe_protocol(self) -> str | None:
        """Return the protocol in one line for people."""
        return self.protocol.describe(ENGINES[self.vectorization]) if self.protocol else None


# ------------------------------------------------------------------------------------- typed loading


# Made once, not in the threads that the viewer answers in: it parses source, and of two threads that do so at a time one may fail in
# CPython 3.11 ("AST constructor recursion depth mismatch").
_TRAIN_CONFIG = pydantic.TypeAdapter(TrainConfig)


def from_mapping(values: Mapping[str, Any], source: str) -> TrainConfig:
    """Return the configuration that `values` (parsed TOML) describes; `source` names them in errors.

    Raises
    ------
    ConfigError
        An unknown key, a value of the wrong type, or one out of range: one line, naming the field.
    """
    _refuse_unknown(TrainConfig, values, source)
    try:
        return _TRAIN_CONFIG.validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            raise ConfigError(f"{source}: {cause}") from None
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ConfigError(f"{source}: {name} is missing") from None
        raise ConfigError(
            f"{source}: {name}={first['input']!r} has the wrong type: {first['msg'].lower()}"
        ) from None


def _refuse_unknown(kind: type, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{source}: unknown key {prefix + key!r}{near(key, hints)}")
        inner = _dataclass_of(hints[key])
        if inner is None:
            _refuse_wrong_type(hints[key], value, prefix + key, source)
        elif isinstance(value, Mapping):
            _refuse_unknown(inner, value, source, f"{prefix}{key}.")


def _refuse_wrong_type(hint: Any, value: Any, name: str, source: str) -> None:
    """Refuse what lax conversion would let through: "2" for an integer, true for a number, 1 for a text."""
    if hint not in (int, float, str, bool):
        return
    accepted = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(
            f"{source}: {name}={value!r} has the wrong type: expected {hint.__name__}, "
            f"got {type(value).__name__}"
        )
    if hint is int and not -LARGEST <= value <= LARGEST:
        raise ConfigError(f"{source}: {name}={value} must be in (-2^63, 2^63)")


def _dataclass_of(hint: Any) -> type | None:
    """Return the dataclass in a hint like ``X`` or ``X | None``."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((t for t in options if isinstance(t, type) and dataclasses.is_dataclass(t)), None)


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """Return `config` as nested dictionaries that TOML can hold (absent where None)."""
    return {key: value for key, value in dataclasses.asdict(config).items() if value is not None}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, with dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def to_toml(config: TrainConfig) -> str:
    """Return `config` as TOML text."""
    return tomli_w.dumps(to_mapping(config))


# ----------------------------------------------------------------------------- recipes and overrides


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("neurocoder.runs.recipes")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def read_recipe(name_or_file: str) -> dict[str, Any]:
    """Return the parsed recipe of that name, or of that TOML file."""
    if name_or_file.endswith(".toml"):
        return read_toml(Path(name_or_file))
    lookup(dict.fromkeys(recipe_names()), name_or_file, "recipe")
    text = (resources.files("neurocoder.runs.recipes") / f"{name_or_file}.toml").read_text("utf-8")
    return tomllib.loads(text)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the parsed file, or raise a ConfigError that names it."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from None


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of ``a3c.gamma=0.9``; the value is TOML, or text where it is no TOML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: expected KEY=VALUE, e.g. a3c.gamma=0.99")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``values["a"]["b"]`` for dotted name ``a.b``, making tables on the way."""
    *tables, last = dotted.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{dotted}: {table} is a value, not a table")
    values[last] = value


def default_recipe(spec: EnvSpec, agent: str | None) -> str:
    """Return the recipe for environments of `spec` that are learned by `agent` (None: by whatever suits them)."""
    if is_atari(spec):
        return "atari"
    if is_game_sequence(spec.id):
        return "continual-atari"
    if not is_task(spec):
        return "control"
    if agent == "a3c":
        return "bandit"
    if spec.name.startswith(("Split", "Permuted")):
        return "images" if agent == "supervised" else "continual"
    return TASK_RECIPES.get(spec.name, "images")


def resolve(
    env: str | None,
    recipe: str | None,
    overrides: Mapping[str, Any],
    source: str,
    *,
    trust: bool = False,
) -> TrainConfig:
    """Return the configuration of a new run.

    The recipe comes first (see :func:`default_recipe` where none is named), `env` and `overrides` (dotted names) win
    over it. ``preset`` names an Atari protocol, whose fields ``protocol.*`` may change. An `env` that somebody
    typed may import a module (``module:Name-v0``), one from a recipe may not, unless `trust`.
    """
    values = read_recipe(recipe) if recipe else {}
    typed = env or overrides.get("env")
    env = typed or values.get("env")
    if not isinstance(env, str) or not env:
        raise ConfigError("train needs an environment id, e.g. neurocoder train ALE/Pong-v5")
    spec = env_spec(env, trust=trust or bool(typed))
    atari = is_atari(spec) or is_game_sequence(spec.id)
    if recipe is None:
        values = read_recipe(default_recipe(spec, overrides.get("agent")))
        if is_task(spec) and overrides.get("agent") == "a3c" and spec.name not in TASK_RECIPES:
            # images: scored on those that it has not seen
            put(values, "evaluation.env_options.split", "test")
    _drop_options_of_others(values, overrides)
    for name, value in {**overrides, "env": env}.items():
        put(values, name, value)
    _fill_in_continual(values, games=is_game_sequence(spec.id))
    if "a3c.minibatches" not in overrides and not SPLIT.isdisjoint(overrides):
        _fit_minibatches(values)
    protocol = values.pop("preset", None)
    if atari:
        base = get_protocol("machado2018" if protocol is None else str(protocol))
        changes = values.get("protocol", {})
        if not isinstance(changes, Mapping):
            raise ConfigError(f"{source}: protocol={changes!r} has the wrong type: expected a table")
        values["protocol"] = {**dataclasses.asdict(base), **changes}
        if is_game_sequence(spec.id):
            values["protocol"]["full_action_space"] = True  # the actions that all games have
    elif protocol is not None or "protocol" in values:
        raise ConfigError(f"a protocol preset applies to Atari games only, and {env!r} is none")
    return from_mapping(values, source if overrides or not recipe else recipe)


def _drop_options_of_others(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Where a flag names another encoder, core or head than the recipe, take the recipe's options for it away.

    What says how images are read holds for every encoder that reads them so.
    """
    policy = values.get("policy", {})
    for part in ("encoder", "core", "head"):
        name = overrides.get(f"policy.{part}")
        if isinstance(policy, dict) and name is not None and name != policy.get(part):
            options = policy.pop(f"{part}_config", {})
            if part == "encoder" and "standardize" in options and name in IMAGE_NETS:
                policy["encoder_config"] = {"standardize": options["standardize"]}


def _fill_in_continual(values: dict[str, Any], *, games: bool) -> None:
    """Give a continual method that was named without its coefficient the one of the scenario (``preset``), an optimiser its rate.

    Coefficients are for images: with games there is none, and :class:`ContinualConfig` says so.
    """
    continual, options = values.get("continual", {}), values.get("env_options", {})
    if not isinstance(continual, dict):
        return
    if "optimizer" in continual and "learning_rate" not in continual:
        name = str(continual["optimizer"])
        continual["learning_rate"] = LEARNING_RATES.get(name, ContinualConfig().learning_rate)
    if "method" in continual and "strength" not in continual and not games:
        scenario = options.get("scenario", "domain") if isinstance(options, Mapping) else "domain"
        continual["strength"] = preset(str(scenario), str(continual["method"]))


def _fit_minibatches(values: dict[str, Any]) -> None:
    """Let a recipe's number of minibatches divide what flags have made of its rollouts: steps; with a core or V-trace games."""
    given, policy = values.get("a3c", {}), values.get("policy", {})
    if not isinstance(given, dict) or not isinstance(policy, dict) or "minibatches" not in given:
        return
    usual = A3CConfig()
    sizes = [given.get(name, getattr(usual, name)) for name in ("envs_per_worker", "env_groups", "n_steps")]
    minibatches = given["minibatches"]
    if not all(type(size) is int and size >= 1 for size in (*sizes, minibatches)):
        return  # refused where types and ranges are
    games, n_steps = sizes[0] // sizes[1], sizes[2]
    whole_games = policy.get("core", PolicyConfig().core) != "none" or given.get("vtrace") is True
    parts = games if whole_games else games * n_steps
    given["minibatches"] = math.gcd(minibatches, parts)
