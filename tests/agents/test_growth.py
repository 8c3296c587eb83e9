"""Program memories that grow and shrink between tasks: nothing is forgotten by the change itself, and what methods remember
goes with the rows."""

import pytest
import torch

from neurocoder.agents import continual as cl
from neurocoder.agents import growth
from neurocoder.agents.continual import ContinualLearner
from neurocoder.agents.continual_methods import ContinualConfig
from neurocoder.envs import make_tasks
from neurocoder.errors import ConfigError
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.policies.heads import match_slots

ID = "neurocoder/SplitDigits-v0"
HEAD = {"slots": 8, "attention_heads": 3, "key_size": 4, "least_used": 2, "residual": False, "openness": True}


def made(seed=0, head="neurocoder", layers="neurocoder", options=HEAD, scenario="domain", **config):
    envs, test = (
        make_tasks(ID, 32, {"scenario": scenario, "split": split, "classes_per_task": 2})
        for split in ("train", "test")
    )
    torch.manual_seed(seed)
    encoder = {"hidden": [12], "layers_head": layers, "layers_head_config": options if layers else {}}
    policy = Policy(
        envs.single_observation_space,
        envs.single_action_space,
        PolicyConfig(
            encoder="mlp", core="none", critic=False, encoder_config=encoder, head=head, head_config=options
        ),
    )
    return ContinualLearner(policy, envs, test, ContinualConfig(passes=1, **config), seed=seed)


def to_task(learner, task):
    while learner.task < task:
        learner.update()


@pytest.mark.parametrize(("method", "strength"), [("none", 0.0), ("ewc", 10.0), ("si", 10.0)])
def test_the_network_is_the_same_before_and_after_it_grows(method, strength, monkeypatch):
    learner = made(method=method, strength=strength, grow=3)
    outputs = []
    original = cl.grow

    def watched(*arguments, **options):
        observation = learner._last.observation
        before = learner.network(observation)
        parameters = learner.network.learned()
        places = original(*arguments, **options)
        torch.testing.assert_close(learner.network(observation), before, rtol=1e-5, atol=1e-6)
        outputs.append({name: p.shape for name, p in parameters.items()})
        return places

    monkeypatch.setattr(cl, "grow", watched)
    to_task(learner, 2)
    assert len(outputs) == 2 and {head.slots for head in learner.growing.values()} == {14}
    penalty = learner.method.penalty(learner.network.learned())
    assert penalty.item() == pytest.approx(0, abs=1e-6)  # nothing has moved since the task before ended
    to_task(learner, 3)
    assert learner.matrix.shape == (4, 5)
    if strength:
        assert learner.method.penalty(learner.network.learned()).item() >= 0
        (first, *_) = learner.method.terms
        shapes = {name: p.shape for name, p in learner.network.learned().items()}
        assert {name: tensor.shape for name, tensor in first.importance.items()} == shapes
        name = next(name for name in shapes if name.endswith("memory_u"))
        if method == "ewc":  # of the first task: before any slot was added
            assert first.importance[name][:8].abs().sum() > 0 == first.importance[name][8:].abs().sum()


def test_old_slots_stand_still_where_that_is_asked_for():
    learner = made(grow=3, freeze_old=True)
    to_task(learner, 1)
    before = {name: head.memory_u.detach().clone() for name, head in learner.growing.items()}
    for _ in range(5):
        learner.update()
    for name, head in learner.growing.items():
        assert head.frozen_slots == 8
        torch.testing.assert_close(head.memory_u[:8], before[name][:8], rtol=0, atol=0)
        assert (head.memory_u[8:] != before[name][8:]).any()


def test_it_grows_only_for_what_is_new():
    never = made(grow=3, novelty=1e6)
    always = made(grow=3, novelty=1e-6)
    for learner, slots in ((never, 8), (always, 11)):
        to_task(learner, 1)
        assert {head.slots for head in learner.growing.values()} == {slots}
    plain = made()
    to_task(plain, 1)
    plain.update()
    never.update()  # having looked at the first batch changes nothing
    for one, two in zip(plain.policy.parameters(), never.policy.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_slots_that_nothing_reads_are_removed():
    learner = made(prune=0.5)
    for head in learner.growing.values():
        with torch.no_grad():
            head.openness[[1, 4]] = 0.0
            head.openness.requires_grad_(False)
    now = growth.usage(learner.network, learner.growing, torch.rand(16, 1, 8, 8))
    for read in now.values():
        assert read[[1, 4]].max() == 0 and read.sum() == pytest.approx(1, abs=0.5)
    places = growth.prune(learner.growing, now, 0.5, learner.optimizer)
    for name, head in learner.growing.items():
        rows = places[f"{name}memory_u"]
        assert head.slots == len(rows) < 8 and not {1, 4} & set(rows.tolist())


def test_the_most_used_stay_however_few_are_used():
    learner = made(prune=0.9)
    usage = {name: torch.tensor([0.05] * 5 + [0.06, 0.65, 0.04]) for name in learner.growing}
    growth.prune(learner.growing, usage, 0.9, learner.optimizer)
    assert {head.slots for head in learner.growing.values()} == {2}  # least_used


def test_rows_move_with_their_places():
    tensor = torch.arange(6.0).view(3, 2)
    assert growth.moved(tensor, None) is tensor
    places = torch.tensor([2, -1, 0])
    assert growth.moved(tensor, places).tolist() == [[4, 5], [0, 0], [0, 1]]
    assert growth.moved(tensor[:, 0], places).tolist() == [4, 0, 0]


@pytest.mark.parametrize("options", [{"grow": 3, "freeze_old": True}, {"grow": 4, "prune": 0.3}])
def test_a_learner_goes_on_to_the_bit_after_it_has_grown(options):
    whole = made(method="si", strength=10.0, **options)
    to_task(whole, 2)
    for _ in range(3):
        whole.update()
    tensors, data = whole.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    model = {name: value.clone() for name, value in whole.policy.state_dict().items()}
    to_task(whole, 3)
    other = made(seed=7, method="si", strength=10.0, **options)  # fresh, as many slots as a new run has
    other.seed = 0
    match_slots(other.policy, model)
    other.policy.load_state_dict(model)
    half = ContinualLearner(other.policy, other.envs, other.test_envs, other.config, seed=0)
    half.load(kept, data)
    to_task(half, 3)
    assert half.matrix.tolist() == whole.matrix.tolist()
    for one, two in zip(half.policy.parameters(), whole.policy.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_what_cannot_grow_is_refused():
    with pytest.raises(ConfigError, match="no program memory"):
        made(grow=2, head="linear", layers=None, options={})
    with pytest.raises(ConfigError, match="openness=true"):
        made(grow=2, options={**HEAD, "openness": False})
    for options, name in (
        ({"freeze_old": True}, "freeze_old"),
        ({"novelty": 2.0}, "novelty"),
        ({"grow": -1}, "grow"),
        ({"prune": 1.0}, "prune"),
    ):
        with pytest.raises(ConfigError, match=name):
            ContinualConfig(**options)
