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
    return ContinualLearner(policy, envs, test, ContinualConfig(**{"passes": 1, **config}), seed=seed)


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


ROUTED = {**HEAD, "attention_heads": 2, "key_size": 16, "controller_size": 64, "sharpness": 50.0}
ROUTED |= {"convex": True, "fixed_routing": True}


def test_with_fixed_routing_a_task_claims_its_slots_and_leaves_the_others_theirs():
    learner = made(options=ROUTED, grow=8, freeze_old=True)
    to_task(learner, 1)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    drawn = before["actor.slot_keys"][:8]
    assert not torch.equal(
        drawn, made(options=ROUTED).policy.actor.slot_keys[:8]
    )  # claimed by the first task
    to_task(learner, 2)
    for name, head in learner.routed.items():
        prefix = name.removeprefix("policy.")
        for part in ("slot_keys", "memory_u", "memory_v", "memory_s"):
            torch.testing.assert_close(getattr(head, part)[:8], before[prefix + part][:8], rtol=0, atol=0)
        controller = {key: value for key, value in before.items() if key.startswith(f"{prefix}controller")}
        assert all(torch.equal(learner.policy.state_dict()[key], value) for key, value in controller.items())
        assert head.slots == 24 and head.openness[:16].min() == 1 and head.openness[16:].max() == 0
    images = cl.samples_of(next(learner._batches), 2, torch.device("cpu"))
    learner.update()
    (first, *_) = learner.routed.values()
    read = first.trace(images.observation.flatten(1)).attention_u[..., 16:].sum(-1).mean()
    assert read > 0.5  # of three tasks' slots, mostly their own


def test_with_fixed_routing_less_is_forgotten():
    kept = made(options=ROUTED, grow=8, freeze_old=True, passes=8, learning_rate=0.01).learn()
    lost = made(passes=8, learning_rate=0.01).learn()
    assert kept[5].mean() > lost[5].mean() + 10


def test_slots_of_ones_own_forget_nothing():
    learner = made(options=ROUTED, scenario="task", grow=8, freeze_old=True, own_slots=True)
    matrix = learner.learn()
    for task in range(5):
        assert (matrix[task + 1 :, task] == matrix[task + 1, task]).all()
    assert [learner._slots_of(learner.policy.actor, task) for task in (0, 1, 4)] == [
        range(8),
        range(8, 16),
        range(32, 40),
    ]


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


@pytest.mark.parametrize(
    "options",
    [
        {"grow": 3, "freeze_old": True},
        {"grow": 4, "prune": 0.3},
        {"grow": 4, "freeze_old": True, "options": ROUTED},
        {"grow": 4, "freeze_old": True, "options": ROUTED, "scenario": "task", "own_slots": True},
    ],
)
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
    with pytest.raises(ConfigError, match="in scenario 'domain' no image comes with its task's number"):
        made(grow=2, own_slots=True)
    with pytest.raises(ConfigError, match="not with fixed_routing"):
        made(grow=2, novelty=2.0, options=ROUTED)
    for options, name in (
        ({"freeze_old": True}, "freeze_old"),
        ({"novelty": 2.0}, "novelty"),
        ({"own_slots": True}, "own_slots"),
        ({"own_slots": True, "grow": 1, "method": "replay"}, "own_slots"),
        ({"grow": -1}, "grow"),
        ({"prune": 1.0}, "prune"),
    ):
        with pytest.raises(ConfigError, match=name):
            ContinualConfig(**options)
