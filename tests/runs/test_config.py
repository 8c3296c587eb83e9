"""Configuration: what is read back is what was written, and every mistake is named."""

import tomllib
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from neurocoder.agents.a3c import A3CConfig
from neurocoder.envs import PROTOCOLS
from neurocoder.errors import ConfigError
from neurocoder.policies import PolicyConfig
from neurocoder.runs.config import (
    TrainConfig,
    from_mapping,
    parse_override,
    put,
    read_recipe,
    recipe_names,
    resolve,
    to_mapping,
    to_toml,
)

PONG = "ALE/Pong-v5"

# ------------------------------------------------------------------------------------- round trips

CONFIGS = {
    "defaults": TrainConfig("CartPole-v1"),
    "game": TrainConfig(PONG, protocol=PROTOCOLS["neurocoder2020"]),
    "changed": TrainConfig(
        "a/b-v0",
        steps=7,
        seed=2**63 - 1,
        precision="bf16",
        policy=PolicyConfig(
            core="none", head_config={"slots": 9, "sharpness": "learnable", "residual": False}
        ),
        a3c=A3CConfig(learning_rate=1e-7, gamma=1.0, optimizer="rmsprop"),
        protocol=replace(PROTOCOLS["dqn2015"], name='a "quoted"\nname', sticky=0.1),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_survives_a_dictionary_and_a_toml_text(name: str) -> None:
    config = CONFIGS[name]
    assert from_mapping(to_mapping(config), "test") == config
    assert from_mapping(tomllib.loads(to_toml(config)), "test") == config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        CONFIGS["defaults"].steps = 1  # type: ignore[misc]


def test_whole_numbers_are_taken_for_real_ones() -> None:
    assert from_mapping({"env": "x", "a3c": {"gamma": 1}}, "test").a3c.gamma == 1.0


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stesp": 1}, "unknown key 'stesp'; did you mean 'steps'?"),
        ({"a3c": {"gama": 0.9}}, "unknown key 'a3c.gama'; did you mean 'gamma'?"),
        ({"policy": {"cor": "lstm"}}, "unknown key 'policy.cor'; did you mean 'core'"),
        ({"protocol": {"stiky": 0}}, "unknown key 'protocol.stiky'; did you mean 'sticky'"),
        ({"policy": {"head": "neurocodr"}}, "unknown head 'neurocodr'; did you mean 'neurocoder'"),
        ({"policy": {"core": "lstn"}}, "unknown core 'lstn'; did you mean 'lstm'?"),
        ({"policy": {"encoder": "natur"}}, "unknown encoder 'natur'; did you mean 'nature'?"),
        (
            {"policy": {"head_config": {"slot": 3}}},
            "unknown option of head 'neurocoder' 'slot'; did you mean 'slots'?",
        ),
    ],
)
def test_an_unknown_key_or_name_offers_the_near_one(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping({"env": "x", **values}, "file.toml")
    assert str(caught.value).startswith("file.toml: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"steps": "2"}, "steps='2'"),
        ({"steps": 2.0}, "steps=2.0"),
        ({"steps": True}, "steps=True"),
        ({"env": 3}, "env=3"),
        ({"seed": [1]}, r"seed=\[1\]"),
        ({"a3c": {"gamma": "0.9"}}, "a3c.gamma='0.9'"),
        ({"a3c": {"gamma": True}}, "a3c.gamma=True"),
        ({"a3c": 3}, "a3c=3"),
        ({"policy": "lstm"}, "policy='lstm'"),
        ({"policy": {"head": 1}}, "policy.head=1"),
        ({"policy": {"head_config": 1}}, "policy.head_config=1"),
        ({"protocol": 1}, "protocol=1"),
        ({"protocol": {"fire_reset": 1}}, "protocol.fire_reset=1"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"file\.toml: {field} has the wrong type") as caught:
        from_mapping({"env": "x", **values}, "file.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"core": "ntm", "core_config": {"first_heads": 3}}, "policy.core_config.first_heads=3"),
        ({"core": "ntm", "core_config": {"head_config": "slots"}}, "policy.core_config.head_config='slots'"),
        (
            {"encoder": "mlp", "encoder_config": {"layers_head": "moe", "layers_head_config": [1]}},
            "policy.encoder_config.layers_head_config=[1]",
        ),
    ],
)
def test_options_that_hold_options_are_tables(policy: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping({"env": "x", "policy": policy}, "file.toml")
    assert str(caught.value) == f"file.toml: {field} must be a table of options"


def test_a_missing_environment_is_named() -> None:
    with pytest.raises(ConfigError, match=r"file\.toml: env is missing"):
        from_mapping({"steps": 1}, "file.toml")


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": -5}, "steps=-5"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, f"seed={2**63}"),
        ({"log_every": 0}, "log_every=0"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0"),
        ({"agent": "dqn"}, "agent='dqn'"),
        ({"precision": "fp16"}, "precision='fp16'"),
        ({"a3c": {"workers": 0}}, r"a3c\.workers=0"),
        ({"a3c": {"envs_per_worker": 0}}, r"a3c\.envs_per_worker=0"),
        ({"a3c": {"n_steps": 0}}, r"a3c\.n_steps=0"),
        ({"a3c": {"learning_rate": 0.0}}, r"a3c\.learning_rate=0\.0"),
        ({"a3c": {"learning_rate": NAN}}, r"a3c\.learning_rate=nan"),
        ({"a3c": {"gamma": 1.01}}, r"a3c\.gamma=1\.01"),
        ({"a3c": {"gae_lambda": NAN}}, r"a3c\.gae_lambda=nan"),
        ({"a3c": {"entropy_coefficient": -0.1}}, r"a3c\.entropy_coefficient=-0\.1"),
        ({"a3c": {"reward_clip": float("inf")}}, r"a3c\.reward_clip=inf"),
        ({"a3c": {"optimizer": "sgd"}}, r"a3c\.optimizer='sgd'"),
        ({"policy": {"core_size": 0}}, r"policy\.core_size=0"),
        ({"protocol": {"sticky": 1.5}}, r"protocol\.sticky=1\.5"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"file\.toml: {field} must be "):
        from_mapping({"env": "x", **values}, "file.toml")


# ------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a3c.gamma=0.9", ("a3c.gamma", 0.9)),
        ("steps=20", ("steps", 20)),
        ("policy.head_config.residual=false", ("policy.head_config.residual", False)),
        ("policy.core=gru", ("policy.core", "gru")),
        ('policy.core="gru"', ("policy.core", "gru")),
        (" policy.core = gru ", ("policy.core", "gru")),
        ("env=a=b", ("env", "a=b")),
        ("policy.head_config={slots=3}", ("policy.head_config", {"slots": 3})),
    ],
)
def test_an_override_is_toml_or_else_text(text: str, expected: tuple[str, Any]) -> None:
    key, value = parse_override(text)
    assert (key, value) == expected and type(value) is type(expected[1])


@pytest.mark.parametrize("text", ["steps", "=3", " = 3"])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_override(text)


def test_put_makes_tables_on_the_way_and_keeps_what_is_there() -> None:
    values: dict[str, Any] = {"a": {"b": 1}}
    put(values, "a.c.d", 2)
    assert values == {"a": {"b": 1, "c": {"d": 2}}}


def test_put_does_not_turn_a_value_into_a_table() -> None:
    with pytest.raises(ConfigError, match=r"a\.b\.c: b is a value"):
        put({"a": {"b": 1}}, "a.b.c", 2)


# ---------------------------------------------------------------------------------------- recipes


def test_the_recipes_of_the_package_are_found() -> None:
    assert {"atari", "control", "neurocoder2020"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_to_a_valid_configuration(name: str) -> None:
    env = PONG if "preset" in read_recipe(name) else "CartPole-v1"
    config = resolve(env, name, {}, "command line")
    assert config.env == env
    assert config.policy.head == ("linear" if config.policy.core == "ntm" else "neurocoder")
    assert config.steps == read_recipe(name).get("steps", TrainConfig(env).steps)


def test_an_unknown_recipe_offers_the_near_one() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'atary'; did you mean 'atari'"):
        read_recipe("atary")


@pytest.mark.parametrize("content", [None, b"steps = ", b"\xff\xfe"], ids=["missing", "no-toml", "no-utf8"])
def test_a_recipe_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.toml"):
        read_recipe(str(file))


def recipe(tmp_path: Path, text: str) -> str:
    file = tmp_path / "mine.toml"
    file.write_text(text, "utf-8")
    return str(file)


def test_flags_win_over_the_recipe_which_wins_over_the_defaults(tmp_path: Path) -> None:
    text = 'env = "Acrobot-v1"\nsteps = 5\nseed = 6\n[a3c]\ngamma = 0.5\nn_steps = 7'
    config = resolve(None, recipe(tmp_path, text), {"steps": 8, "a3c.gamma": 0.25}, "command line")
    assert (config.env, config.steps, config.seed) == ("Acrobot-v1", 8, 6)
    assert (config.a3c.gamma, config.a3c.n_steps) == (0.25, 7)
    assert config.a3c.workers == A3CConfig().workers


def test_the_environment_on_the_command_line_wins_over_the_recipes(tmp_path: Path) -> None:
    mine = recipe(tmp_path, 'env = "Acrobot-v1"')
    assert resolve("CartPole-v1", mine, {}, "command line").env == "CartPole-v1"


def test_an_environment_alone_picks_the_recipe_of_its_kind() -> None:
    game = resolve(PONG, None, {}, "command line")
    assert (game.policy.encoder, game.policy.core, game.a3c.updates_per_rollout) == ("a3c", "none", 16)
    classic = resolve(PONG, "a3c", {}, "test")
    assert (classic.policy.encoder, classic.policy.core, classic.policy.core_size) == ("a3c", "lstm", 256)
    assert classic.a3c.keeps_acting_pass
    assert game.protocol == PROTOCOLS["machado2018"] and game.policy.head == "neurocoder"
    control = resolve("CartPole-v1", None, {}, "command line")
    assert control.policy.core == "none" and control.policy.head == "neurocoder" and control.protocol is None


@pytest.mark.parametrize(("encoder", "options"), [("nature", {"standardize": True}), ("lenet", {})])
def test_how_images_are_read_outlives_a_change_of_encoder(encoder: str, options: dict[str, bool]) -> None:
    assert resolve(PONG, None, {}, "command line").policy.encoder_config == {"standardize": True}
    assert resolve(PONG, None, {"policy.encoder": encoder}, "test").policy.encoder_config == options


@pytest.mark.parametrize("missing", [None, ""])
def test_an_environment_is_needed(missing: str | None) -> None:
    with pytest.raises(ConfigError, match="needs an environment id"):
        resolve(missing, None, {}, "command line")


def test_a_preset_is_the_base_that_protocol_fields_change() -> None:
    config = resolve(PONG, None, {"preset": "dqn2015", "protocol.sticky": 0.5}, "command line")
    assert config.protocol == replace(PROTOCOLS["dqn2015"], sticky=0.5)


def test_a_preset_flag_replaces_the_recipes() -> None:
    assert resolve(PONG, "neurocoder2020", {"preset": "dqn2015"}, "x").protocol == PROTOCOLS["dqn2015"]


def test_an_unknown_preset_offers_the_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dqn2015'"):
        resolve(PONG, None, {"preset": "dqn2051"}, "command line")


@pytest.mark.parametrize("overrides", [{"preset": "dqn2015"}, {"protocol.sticky": 0.1}])
def test_a_protocol_for_what_is_no_game_is_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="applies to Atari games only"):
        resolve("CartPole-v1", None, overrides, "command line")


@pytest.mark.parametrize("source", ["recipe", "flag"])
def test_errors_say_where_the_value_came_from(source: str, tmp_path: Path) -> None:
    mine = recipe(tmp_path, "steps = 0" if source == "recipe" else "steps = 1")
    overrides = {} if source == "recipe" else {"steps": 0}
    with pytest.raises(ConfigError) as caught:
        resolve("CartPole-v1", mine, overrides, "command line")
    assert str(caught.value).startswith(f"{mine if source == 'recipe' else 'command line'}: steps=0")


def test_a_protocol_that_is_no_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="protocol"):
        resolve(PONG, None, {"protocol": 3}, "command line")


def test_a_recipe_file_cannot_import_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "recipes_module.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    mine = recipe(tmp_path, 'env = "recipes_module:CartPole-v1"')
    with pytest.raises(Exception, match="--trust"):
        resolve(None, mine, {}, "command line")
    assert not marker.exists()


def test_a_game_always_has_a_protocol() -> None:
    try:
        config = resolve("CartPole-v1", None, {"env": PONG}, "command line")
    except ConfigError:
        return  # refusing a second environment is as good
    assert (config.protocol is not None) == (config.env == PONG)


@pytest.mark.parametrize(
    ("overrides", "minibatches"),
    [
        ({}, 16),
        ({"policy.core": "lstm", "a3c.envs_per_worker": 4}, 4),  # whole games
        ({"policy.core": "gru", "a3c.envs_per_worker": 6}, 2),
        ({"policy.core": "lstm", "a3c.env_groups": 4}, 4),
        ({"a3c.envs_per_worker": 3, "a3c.n_steps": 20}, 4),  # of 60 steps
        ({"a3c.minibatches": 8}, 8),
        ({"policy.core": "lstm", "a3c.minibatches": 8}, 8),
    ],
)
def test_a_recipe_s_minibatches_fit_what_is_asked_for(overrides: dict[str, Any], minibatches: int) -> None:
    assert resolve(PONG, None, overrides, "test").a3c.minibatches == minibatches


def test_a_recipe_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    mine = recipe(tmp_path, 'env = "CartPole-v1"\n[a3c]\nclip_range = 0.1\nminibatches = 7')
    with pytest.raises(ConfigError, match=r"minibatches=7 must be a divisor of the 320 steps"):
        resolve(None, mine, {}, "test")


@pytest.mark.parametrize(
    "overrides",
    [
        {"policy.core": "lstm", "a3c.minibatches": 32},
        {"a3c.minibatches": 7},
        {"a3c.envs_per_worker": 0},
        {"a3c.envs_per_worker": "many"},
        {"a3c": 3},
        {"policy": 3},
    ],
)
def test_minibatches_and_sizes_that_are_wrong_are_named(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"minibatches|envs_per_worker|a3c|policy"):
        resolve(PONG, None, overrides, "test")
