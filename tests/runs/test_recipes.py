"""Each row of the paper's Table 5 is a recipe, and the recipe is the row."""

import pytest

from neurocoder.policies import PolicyConfig, make_head
from neurocoder.runs.config import read_recipe, recipe_names, resolve

# Table 5 of arXiv 2009.11443: P, J, H, K, l_I, a; and whether the program has a residual (appendix: excluded in the
# polynomial and Split MNIST tasks, and in linear MNIST to keep the size).
TABLE_5 = {
    "table5-mnist-linear": (5, 5, 1, 2, 2, 0.1, False),
    "table5-cifar": (30, 5, 3, 5, 5, 0.1, True),
    "table5-polynomial-single": (10, 1, 15, 3, 2, 0.1, False),
    "table5-polynomial-multi": (20, 5, 1, 3, 2, 0.1, False),
    "neurocoder2020": (80, 1, 15, 3, 5, 0.1, True),
    "table5-split-mnist": (50, 1, 10, 5, 5, 10.0, False),
    "table5-split-cifar": (100, 1, 10, 5, 5, 10.0, True),
}


@pytest.mark.parametrize("name", TABLE_5)
def test_a_recipe_equals_its_row(name):
    policy = PolicyConfig(**read_recipe(name)["policy"])
    head = make_head(policy.head, 16, 4, **policy.head_config)
    row = (
        head.slots,
        head.attention_steps,
        head.attention_heads,
        head.key_size,
        head.least_used,
        head.orthogonality,
        head.residual is not None,
    )
    assert policy.head == "neurocoder" and row == TABLE_5[name]


def test_no_row_is_missing():
    assert {name for name in recipe_names() if name.startswith("table5")} == TABLE_5.keys() - {
        "neurocoder2020"
    }


ALL_LAYERS = ("table5-cifar", "table5-split-mnist", "table5-split-cifar")
"""Recipes whose network is composed throughout."""


@pytest.mark.parametrize("name", [name for name in TABLE_5 if name.startswith("table5")])
def test_a_recipe_learns_its_task_as_the_paper_does(name):
    recipe = read_recipe(name)
    config = resolve(None, name, {}, "test")
    task = recipe["env"].removeprefix("neurocoder/")
    assert config.agent == ("continual" if task.startswith("Split") else "supervised")
    assert not config.policy.critic and config.env.endswith("-v0")
    assert config.supervised.batch_size == (32 if "mnist-linear" in name else 128)
    assert config.supervised.optimizer == ("sgd" if "mnist-linear" in name else "adam")
    if config.agent == "supervised" and "Polynomial" not in task:
        assert config.evaluation_options["split"] == "test"  # unseen images
    layers = config.policy.encoder_config.get("layers_head_config")
    assert layers == (config.policy.head_config if name in ALL_LAYERS else None)


def test_sizes_that_the_paper_states_beside_the_table():
    sizes = {name: read_recipe(name)["policy"] for name in TABLE_5}
    assert sizes["neurocoder2020"]["core_size"] == 512
    assert sizes["table5-polynomial-single"]["core_size"] == 16
    assert sizes["table5-polynomial-multi"]["core_size"] == 8
    assert sizes["table5-mnist-linear"]["head_config"]["controller_size"] == 8
