"""Continual learning: every method against its definition, exact continuation, whole runs, metrics by hand."""

import math
import warnings
from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.agents import continual as cl
from neurocoder.agents import continual_metrics as cm
from neurocoder.agents import importance as ip
from neurocoder.agents.continual import ContinualLearner
from neurocoder.agents.continual_methods import METHOD_CLASSES, METHODS, PRESETS, ContinualConfig, preset
from neurocoder.agents.importance import Samples
from neurocoder.agents.probes import OfComposed
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.envs import make_tasks
from neurocoder.errors import ConfigError, NeurocoderError
from neurocoder.policies import Policy, PolicyConfig

WITH_STRENGTH = ("l2", "ewc", "online-ewc", "si", "mas")
N_IN, N_OUT = 3, 4
MASKS = torch.tensor([[True, True, False, False], [True, True, True, True]])


def network(
    head="linear", hidden=(), shape=(N_IN,), seed=0, encoder="mlp", bias=True, task_heads=0, **options
):
    torch.manual_seed(seed)
    of_mlp = {"hidden": list(hidden), "activation": "tanh", "bias": bias}
    config = PolicyConfig(
        encoder=encoder,
        encoder_config=of_mlp if encoder == "mlp" else {},
        core="none",
        head=head,
        head_config=options,
        critic=False,
        task_heads=task_heads,
    )
    space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    return ip.Network(Policy(space, gym.spaces.Discrete(N_OUT), config).double())


def drawn(n, task=1, shape=(N_IN,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Samples(
        torch.randn(n, *shape, generator=generator, dtype=torch.float64),
        torch.randint(0, N_OUT, (n,), generator=generator),
        torch.full((n,), task),
    )


def method(name, net, seed=0, **options):
    strength = 1.0 if name in WITH_STRENGTH else 0.0
    return METHOD_CLASSES[name](net, ContinualConfig(method=name, strength=strength, **options), seed)


# ------------------------------------------------------------------------------------------ equations


def test_the_penalty_by_hand():
    parameters = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    anchor = {"a": torch.tensor([0.0, 4.0]), "b": torch.tensor([[1.0]])}
    importance = {"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([[0.25]])}
    assert ip.quadratic_penalty(parameters, anchor, importance) == 3 * 1 + 0.5 * 4 + 0.25 * 4


def slow_fisher(net, samples, task):
    """Of a linear model in NumPy, image by image: the gradient of log p(ŷ|x) is (e_ŷ - p) xᵀ."""
    layer = net.policy.actor.layer
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    allowed = MASKS[task].numpy()
    totals = np.zeros_like(weight), np.zeros_like(bias)
    for x in samples.observation.numpy():
        logits = weight @ x + bias
        p = np.where(allowed, np.exp(logits), 0)
        p /= p.sum()
        of_output = -p
        of_output[p.argmax()] += 1
        totals[0][:] += np.outer(of_output, x) ** 2
        totals[1][:] += of_output**2
    return [total / len(samples.target) for total in totals]


@pytest.mark.parametrize("task", [0, 1])
def test_fisher_of_a_linear_model(task):
    net, samples = network(), drawn(11, task)
    found = ip.fisher_diagonal(
        net, [Samples(*(p[:5] for p in samples)), Samples(*(p[5:] for p in samples))], MASKS
    )
    for value, expected in zip(found.values(), slow_fisher(net, samples, task), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-15)
    assert (found["policy.actor.layer.weight"][2:] == 0).all() == (task == 0)


@pytest.mark.parametrize(
    ("head", "encoder", "options"),
    [
        ("linear", "mlp", {}),
        ("neurocoder", "mlp", {"slots": 6, "least_used": 2, "attention_heads": 2}),
        ("neurocoder", "mlp", {"slots": 6, "least_used": 2, "attention_heads": 2, "attention_steps": 3}),
        ("neurocoder", "mlp", {"slots": 6, "least_used": 2, "attention_heads": 2, "residual": False}),
        ("neurocoder", "mlp", {"slots": 6, "least_used": 2, "convex": True, "fixed_routing": True}),
        ("neurocoder-released", "mlp", {}),
        ("neurocoder-released", "mlp", {"attention_steps": 2, "residual": True, "content_keys": False}),
        ("lowrank", "mlp", {}),
        ("nsm", "mlp", {}),
        ("moe", "mlp", {}),
        ("hypernet", "mlp", {}),
        ("linear", "mlp", {"bias": False}),
        ("linear", "lenet", {}),
    ],
)
def test_fisher_equals_a_loop_over_images(head, encoder, options):
    shape = (3, 32, 32) if encoder == "lenet" else (N_IN,)
    net, samples = network(head, (5, 6), shape, encoder=encoder, **options), drawn(7, shape=shape)
    assert_equals_a_loop(net, samples)


def assert_equals_a_loop(net, samples):
    found = ip.fisher_diagonal(net, [samples], MASKS, chunk=3)
    learned = net.learned()
    net.eval()
    total = {name: torch.zeros_like(p) for name, p in learned.items()}
    mask = MASKS[samples.task[0]]
    for x in samples.observation:
        loss = -net(x[None])[0, mask].log_softmax(-1).max()
        gradients = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
        for name, gradient in zip(learned, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient**2 / len(samples.target)
    for name, value in found.items():
        torch.testing.assert_close(value, total[name], rtol=1e-7, atol=1e-12, msg=name)
    assert any(value.any() for value in total.values())


def test_fisher_of_frozen_slots_is_zero():
    """Their keys are frozen, too, but not the net that makes them."""
    net, samples = network("neurocoder", (5, 6), slots=6, least_used=2), drawn(7)
    head = net.policy.actor
    head.grow(3, freeze_old=True)
    with torch.no_grad():
        head.openness[6:] = 0.7
    head.shown = range(3, 9)
    assert "policy.actor" in ip.reached(net, samples.observation).probes
    assert_equals_a_loop(net, samples)
    found = ip.fisher_diagonal(net, [samples], MASKS)
    for memory in ("memory_u", "memory_v"):
        frozen, learned = found[f"policy.actor.{memory}"].split((6, 3))
        assert not frozen.any() and (learned > 0).all()


@pytest.mark.parametrize("head", ["linear", "nsm", "neurocoder"])
def test_fisher_of_heads_side_by_side(head):
    """Those that are not asked have none, and are not run."""
    net, samples = network(head, (5, 6), task_heads=2), drawn(7, 0)
    assert_equals_a_loop(net, samples)
    whole = ip.fisher_diagonal(net, [samples], MASKS)
    with cl.asking(net.policy, MASKS[0]):
        names = {name for name in ip.reached(net, samples.observation).probes}
        asked = ip.fisher_diagonal(net, [samples], MASKS)
    assert any("heads.0" in name for name in names) and not any("heads.1" in name for name in names)
    for name, value in whole.items():
        torch.testing.assert_close(asked[name], value)


@pytest.mark.parametrize("head", ["nsm", "neurocoder", "neurocoder-released"])
def test_probes_are_good_enough_in_float32(head):
    net, samples = network(head, (5, 6)), drawn(40)
    exact = ip.fisher_diagonal(net, [samples], MASKS)
    net.float()
    found = ip.fisher_diagonal(net, [Samples(samples.observation.float(), *samples[1:])], MASKS)
    assert "policy.actor" in ip.reached(net, samples.observation.float()).probes
    for name, value in found.items():
        largest = float(exact[name].max())
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_which_layers_have_probes():
    """Linear layers, mixtures and composed layers; not those that are run over a memory, or used by their weights."""
    samples = drawn(4)
    encoder = {"policy.encoder.layers.0", "policy.encoder.layers.2"}
    for head in ("nsm", "moe", "neurocoder", "neurocoder-released"):
        net = network(head, (5, 6)).eval()
        found = ip.reached(net, samples.observation).probes
        assert {*encoder, "policy.actor"} <= found.keys(), head
        assert not any("key_" in name for name in found)
    plain = network("linear", (5, 6), bias=False)
    assert encoder <= ip.reached(plain, samples.observation).probes.keys()
    net = network("linear", (5, 6))
    names = {*encoder, "policy.actor.layer"}
    assert ip.reached(net, samples.observation).probes.keys() == names
    actor, first = net.policy.actor.layer, net.policy.encoder.layers[0]
    used = net.policy.actor.forward = lambda x: actor(x) * (1 + first.weight[0, 0])  # a use that is no call
    names -= {"policy.encoder.layers.0"}
    assert ip.reached(net, samples.observation).probes.keys() == names
    assert net.policy.actor.forward is used and "forward" not in actor.__dict__  # as they were


@pytest.mark.parametrize("part", ["memory_v", "key_u.weight", "forward", "layer"])
def test_a_probe_that_says_something_else_is_not_used(monkeypatch, part):
    """Also where a network is so sure of its answers that no gradient is left to tell."""
    net, samples = network("neurocoder", (5, 6)), drawn(4)
    with torch.no_grad():
        net.policy.actor.memory_v.mul_(1e4)
    squares, forward = OfComposed.squares, OfComposed.forward

    def wrong(self, gradients, seen):
        found = squares(self, gradients, seen)
        return found | {part: 0 * found[part]}

    def twice(self, x, shifts):
        y, seen = forward(self, x, shifts)
        return 2 * y, seen

    if part == "layer":
        plain = net.policy.actor.forward_with_trace
        net.policy.actor.forward = lambda x: 3 * plain(x)[0]
    elif part == "forward":
        monkeypatch.setattr(OfComposed, "forward", twice)
    else:
        monkeypatch.setattr(OfComposed, "squares", wrong)
    assert "policy.actor" not in ip.reached(net, samples.observation).probes
    assert_equals_a_loop(net, samples)


def test_fewer_images_at_once_where_gradients_are_large(monkeypatch):
    net, samples = network("hypernet"), drawn(9)
    sizes = []
    plain = ip.image_gradients

    def counted(network, probes, others, observation, masks):
        sizes.append(len(observation))
        return plain(network, probes, others, observation, masks)

    monkeypatch.setattr(ip, "image_gradients", counted)
    names = list(net.learned())
    monkeypatch.setattr(ip, "reached", lambda *arguments: ip.Reached({}, names))
    monkeypatch.setattr(ip, "COPIED", 4 * sum(p.numel() for p in net.parameters()) + 1)
    ip.fisher_diagonal(net, [samples], MASKS)
    assert sizes == [4, 4, 1]


def test_fisher_takes_no_more_images_than_asked_for():
    net, samples = network(), drawn(9)
    parts = [Samples(*(part[i : i + 4] for part in samples)) for i in (0, 4, 8)]
    few = ip.fisher_diagonal(net, iter(parts), MASKS, limit=6)
    for value, expected in zip(
        few.values(), slow_fisher(net, Samples(*(p[:6] for p in samples)), 1), strict=True
    ):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("task", [0, 1])
def test_mas_of_a_linear_model(task):
    net = network()
    parts = [drawn(5, task, seed=1), drawn(3, task, seed=2)]
    found = ip.output_sensitivity(net, parts, MASKS)
    layer = net.policy.actor.layer
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    allowed = MASKS[task].numpy()
    expected = np.zeros_like(weight), np.zeros_like(bias)
    for part in parts:
        of_weight, of_bias = np.zeros_like(weight), np.zeros_like(bias)
        for x in part.observation.numpy():
            of_output = 2 * np.where(allowed, weight @ x + bias, 0) / (len(part.target) * allowed.sum())
            of_weight += np.outer(of_output, x)
            of_bias += of_output
        expected[0][:] += np.abs(of_weight) / 2
        expected[1][:] += np.abs(of_bias) / 2
    for value, numbers in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(value, numbers, rtol=1e-9, atol=1e-15)


def test_si_on_a_quadratic_in_closed_form():
    """Loss ½ a (θ - c)², n steps of size η from c + d: θ - c = q^t d with q = 1 - η a, so
    ω = Σ η (a q^t d)² = a d² (1 - q^2n) / (2 - η a), which for small η is what the loss has lost."""
    net = network()
    method_ = method("si", net, damping=0.3)
    weight, bias = net.policy.actor.layer.weight, net.policy.actor.layer.bias
    torch.manual_seed(1)
    a = torch.rand_like(weight) + 0.5
    centre, rate, n = torch.randn_like(weight), 1e-3, 400
    d = weight.detach() - centre
    for _ in range(n):
        gradient = a * (weight.detach() - centre)
        method_.before_step()
        with torch.no_grad():
            weight -= rate * gradient
        name = "policy.actor.layer.{}".format
        method_.after_step({name("weight"): gradient, name("bias"): None})
    q = 1 - rate * a
    expected = a * d**2 * (1 - q ** (2 * n)) / (2 - rate * a)
    torch.testing.assert_close(method_.path["policy.actor.layer.weight"], expected)
    lost = a * d**2 * (1 - q ** (2 * n)) / 2
    torch.testing.assert_close(expected, lost, rtol=1e-3, atol=0)
    method_.after_task(iter(()), MASKS)
    (term,) = method_.terms
    change = d * (q**n - 1)
    torch.testing.assert_close(term.importance["policy.actor.layer.weight"], expected / (change**2 + 0.3))
    assert not term.importance["policy.actor.layer.bias"].any()
    torch.testing.assert_close(term.anchor["policy.actor.layer.weight"], weight.detach())
    assert not any(path.any() for path in method_.path.values())
    assert bias.shape == (N_OUT,)


# ------------------------------------------------------------------------------------------- methods


def after_two_tasks(name):
    """Return the method, the terms that each task alone would have given, and the anchors."""
    net = network()
    method_, alone, anchors = method(name, net), [], []
    for task in (0, 1):
        with torch.no_grad():
            net.policy.actor.layer.weight += 1 + task
        anchors.append(net.copied())
        fresh = method(name, net)
        data = [drawn(8, task, seed=task)]
        fresh.after_task(iter(data), MASKS)
        alone.append(fresh.terms[0].importance)
        method_.after_task(iter(data), MASKS)
    return method_, alone, anchors


def test_ewc_keeps_a_term_of_every_task():
    method_, alone, anchors = after_two_tasks("ewc")
    for term, importance, anchor in zip(method_.terms, alone, anchors, strict=True):
        for part, expected in ((term.importance, importance), (term.anchor, anchor)):
            assert all(torch.equal(part[name], expected[name]) for name in expected)
    weights = {name: p + 0.5 for name, p in anchors[1].items()}
    expected = sum(
        (alone[k][name] * (weights[name] - anchors[k][name]) ** 2).sum() for k in (0, 1) for name in weights
    )
    torch.testing.assert_close(method_.penalty(weights), expected)


@pytest.mark.parametrize("name", ["online-ewc", "mas"])
def test_importances_add_up_at_the_last_anchor(name):
    method_, alone, anchors = after_two_tasks(name)
    (term,) = method_.terms
    for key in anchors[1]:
        assert alone[0][key].any() and alone[1][key].any()
        torch.testing.assert_close(term.importance[key], alone[0][key] + alone[1][key])
        assert torch.equal(term.anchor[key], anchors[1][key])


def test_l2_keeps_the_last_anchor_with_weight_one():
    method_, _, anchors = after_two_tasks("l2")
    (term,) = method_.terms
    assert all((part == 1).all() for part in term.importance.values())
    assert all(torch.equal(term.anchor[name], anchors[1][name]) for name in anchors[1])


def test_replay_mixes_one_to_one_and_shows_all_memories_alike():
    net = network()
    replay = method("replay", net, memory_size=30, batch_size=8)
    new = drawn(8, task=0, seed=9)
    assert [part is whole for part, whole in zip(replay.mixed(new, 0), [new], strict=True)] == [True]
    replay.after_task(iter([drawn(20, 0, seed=1), drawn(20, 0, seed=2)]), MASKS)
    assert [len(old.target) for old in replay.memory] == [30]
    first = replay.memory[0].observation[:15].clone()
    replay.after_task(iter([drawn(12, 1, seed=3)]), MASKS)
    assert [len(old.target) for old in replay.memory] == [15, 12]  # the second task has no more
    assert torch.equal(replay.memory[0].observation, first)
    shown = []
    for draw in range(27):
        new = drawn(8, task=2, seed=10 + draw)
        steps = replay.mixed(new, draw)
        assert len(steps) == 2
        for part, start in zip(steps, (0, 4), strict=True):
            assert torch.equal(part.observation[:4], new.observation[start : start + 4])
            assert part.task.tolist()[:4] == [2] * 4 and 2 not in part.task[4:]
            shown += [bytes(x.numpy()) for x in part.observation[4:]]
    known = torch.cat([old.observation for old in replay.memory])
    targets = torch.cat([old.target for old in replay.memory])
    counts = [shown.count(bytes(x.numpy())) for x in known]
    assert counts == [27 * 8 // 27] * 27
    last = steps[-1]
    where = [[bytes(x.numpy()) for x in known].index(bytes(x.numpy())) for x in last.observation[4:]]
    assert torch.equal(last.target[4:], targets[where])


def test_a_memory_of_less_than_one_image_a_task_is_refused():
    replay = method("replay", network(), memory_size=1)
    replay.after_task(iter([drawn(4)]), MASKS)
    with pytest.raises(ConfigError, match="memory_size=1 is less than"):
        replay.after_task(iter([drawn(4)]), MASKS)


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_auxiliary_losses_are_no_part_of_importances(name):
    terms = []
    for orthogonality in (0.0, 5.0):
        net = network("neurocoder", (5,), orthogonality=orthogonality, slots=6)
        assert (net.policy.aux_loss() > 0) == (orthogonality > 0)
        method_ = method(name, net)
        method_.after_task(iter([drawn(8)]), MASKS)
        terms.append(method_.terms[0].importance)
    assert all(torch.equal(terms[0][key], terms[1][key]) for key in terms[0])
    assert any(value.any() for value in terms[0].values())


# ------------------------------------------------------------------------------------------- learner


def learner(
    method="none", scenario="class", head="linear", seed=0, options=None, hidden=(16,), task_heads=0, **config
):
    options = {"scenario": scenario, "samples": 400, **(options or {})}
    envs = make_tasks("neurocoder/SplitDigits-v0", 16, options)
    test = make_tasks("neurocoder/SplitDigits-v0", 64, options | {"split": "test", "samples": 0})
    torch.manual_seed(seed)
    policy = Policy(
        envs.single_observation_space,
        envs.single_action_space,
        PolicyConfig(
            encoder="mlp",
            encoder_config={"hidden": list(hidden), "activation": "relu"},
            core="none",
            head=head,
            critic=False,
            task_heads=task_heads,
        ),
    )
    strength = 10.0 if method in WITH_STRENGTH else 0.0
    config = {"passes": 2, "batch_size": 16, "strength": strength, **config}
    return ContinualLearner(policy, envs, test, ContinualConfig(method=method, **config), seed=seed)


def until_task(learner, task):
    while learner.task < task:
        learner.update()
    return learner


@pytest.mark.parametrize("head", ["linear", "neurocoder"])
def test_a_step_is_along_all_three_gradients_and_si_sees_only_the_first(head):
    one = learner("si", head=head, optimizer="sgd", learning_rate=0.1, strength=3.0)
    until_task(one, 1)
    for _ in range(3):
        one.update()
    before = one.network.copied()
    path = {name: value.clone() for name, value in one.method.path.items()}
    (term,) = one.method.terms
    seen = []
    one.method.mixed = lambda new, draw: seen.append(new) or [new]
    one.update()
    after = one.network.copied()
    twin = learner("si", head=head)
    with torch.no_grad():
        for name, p in twin.network.learned().items():
            p.copy_(before[name])
    twin.policy.train()
    learned = twin.network.learned()
    logits, auxiliary = cl.logits_of(twin.policy, seen[0])
    assert (auxiliary > 0) == (head == "neurocoder")
    loss = torch.nn.functional.cross_entropy(logits[:, :4], seen[0].target)  # two tasks: four classes compete
    of_loss = torch.autograd.grad(loss, list(learned.values()), retain_graph=True)
    of_auxiliary = [torch.zeros_like(p) for p in learned.values()]
    if auxiliary.requires_grad:
        of_auxiliary = torch.autograd.grad(auxiliary, list(learned.values()), allow_unused=True)
    for name, g, g_aux in zip(learned, of_loss, of_auxiliary, strict=True):
        pull = 2 * 3.0 * term.importance[name] * (before[name] - term.anchor[name])
        whole = g + pull + (0 if g_aux is None else g_aux)
        torch.testing.assert_close(after[name], before[name] - 0.1 * whole, rtol=1e-4, atol=1e-6)
        expected = path[name] - g * (after[name] - before[name])
        torch.testing.assert_close(one.method.path[name], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_the_penalty_appears_with_the_second_task(name):
    one = until_task(learner(name), 1)
    one.update()
    one.update()
    value = float(one.method.penalty(one.network.learned()).detach())
    assert (value > 0) == (name in WITH_STRENGTH)
    assert float(learner(name).method.penalty(one.network.learned())) == 0


def test_the_strength_multiplies_the_penalty():
    """L2 so strong that nothing moves any more; without it the same run does move."""
    moved = []
    for strength in (1e-6, 400.0):
        one = until_task(learner("l2", optimizer="sgd", learning_rate=1e-3, strength=strength), 1)
        anchor = one.network.copied()
        until_task(one, 2)
        moved.append(
            sum(float((p - anchor[name]).square().sum()) for name, p in one.network.copied().items())
        )
    assert moved[1] < 0.1 * moved[0]


@pytest.mark.parametrize(
    ("scenario", "changed"), [("task", {4, 5}), ("domain", {0, 1}), ("class", set(range(6)))]
)
def test_only_competing_outputs_learn(scenario, changed):
    one = until_task(learner("none", scenario, optimizer="sgd", learning_rate=0.1), 2)
    before = one.policy.actor.layer.weight.detach().clone()
    one.update()
    moved = (one.policy.actor.layer.weight != before).any(1)
    assert set(moved.nonzero().flatten().tolist()) == changed


def test_replayed_images_compete_with_the_classes_of_now():
    one = until_task(learner("replay", "class"), 1)
    before, seen, mixed = one.network.copied(), [], one.method.mixed
    one.method.mixed = lambda new, draw: seen.extend(mixed(new, draw)[:1]) or seen
    update = one.update()
    (samples,) = seen
    assert sorted(set(samples.task.tolist())) == [0, 1]
    twin = learner("replay", "class")
    with torch.no_grad():
        for name, p in twin.network.learned().items():
            p.copy_(before[name])
        logits = twin.network(samples.observation)[:, :4]
    assert update.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, samples.target)), rel=1e-5
    )


def test_the_optimiser_is_carried_over():
    one = until_task(learner("none"), 2)
    draws = sum(2 * -(-int(one.envs.task.with_options(task=k).n) // 16) for k in (0, 1))
    state = one.optimizer.state_dict()["state"]
    assert {int(slots["step"]) for slots in state.values()} == {draws}


def test_a_tasks_head_begins_with_its_task():
    """As networks of one head each would: Adam's first step of a head is one of full length."""
    one = until_task(learner("none", "task", task_heads=5), 1)
    heads = [head.layer.weight for head in one.policy.actor.heads]
    steps = [
        int(one.optimizer.state[weight]["step"]) if weight in one.optimizer.state else 0 for weight in heads
    ]
    draws = one.config.passes * one.envs.task.with_options(task=0).passes(16)
    assert steps == [draws, 0, 0, 0, 0]
    second = heads[1].detach().clone()
    one.update()
    change = (heads[1] - second).abs()
    torch.testing.assert_close(change.max(), torch.tensor(1e-3), rtol=1e-3, atol=0)
    assert all(weight not in one.optimizer.state for weight in heads[2:])
    with_penalty = until_task(learner("l2", "task", task_heads=5), 1)
    with_penalty.update()
    last = with_penalty.policy.actor.heads[4].layer.weight
    assert int(with_penalty.optimizer.state[last]["step"]) == 1  # the penalty asks for it, in vain


@pytest.mark.parametrize(
    ("method", "head", "optimizer"),
    [
        ("none", "neurocoder", "adam"),
        ("none", "linear", "adam"),
        ("si", "linear", "adam"),
        ("online-ewc", "nsm", "sgd"),
        ("replay", "linear", "adagrad"),
    ],
)
def test_heads_that_are_not_asked_change_nothing(monkeypatch, method, head, optimizer):
    """Neither what is learned, nor momentum of heads whose task is over, nor scores."""
    options = {"task_heads": 5, "head": head, "optimizer": optimizer, "passes": 1}
    one = until_task(learner(method, "task", **options), 3)
    monkeypatch.setattr(cl, "asking", lambda policy, outputs: nullcontext())
    whole = until_task(learner(method, "task", **options), 3)
    np.testing.assert_allclose(one.matrix, whole.matrix, atol=2.0)  # an image or two
    for (name, p), other in zip(one.network.learned().items(), whole.network.learned().values(), strict=True):
        torch.testing.assert_close(p, other, rtol=1e-3, atol=1e-4, msg=name)


def test_the_matrix_and_the_steps():
    one = learner("none", "task", passes=6, learning_rate=1e-2)
    assert one.matrix.shape == (0, 5) and not one.done
    matrix = one.learn()
    assert matrix.shape == (6, 5) and one.done and one.task == 5
    assert one.steps == one.total_steps
    assert 20 < matrix[0].mean() < 80 and (np.diagonal(matrix, -1) > 85).all()
    with pytest.raises(RuntimeError, match="all tasks"):
        one.update()
    data = one.test_envs.task.data
    allowed = torch.from_numpy(one.envs.task.logits_masks(5))
    seen = torch.from_numpy(one.test_envs.task._float(data.images))
    with torch.no_grad():
        logits = one.policy.actor(one.policy.encoder(seen)).numpy()
    for task in range(5):
        own = data.labels // 2 == task
        answer = np.where(allowed[task], logits[own], -np.inf).argmax(1)
        assert matrix[5, task] == pytest.approx(100 * (answer == data.labels[own]).mean())


def test_the_untrained_row_is_of_the_untrained_network():
    one = learner("none", "class")
    row = cl.accuracies(one.policy, one.test_envs, 0)
    one.update()
    assert one.rows == [row]
    assert max(row) > 0  # a task that is yet to come competes with those before it


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("place", ["boundary", "within", "end"])
def test_it_goes_on_bit_by_bit(name, place):
    """Also with noise in the forward pass, and with heads that have not begun or are done."""
    head = "moe" if name == "si" else "linear"
    scenario, task_heads = ("task", 3) if name in ("none", "online-ewc") else ("class", 0)

    def fresh():
        options = {"samples": 150, "tasks": 3, "classes_per_task": 2}
        return learner(name, scenario, head=head, passes=1, options=options, task_heads=task_heads)

    one = until_task(fresh(), 3 if place == "end" else 2)
    if place == "within":
        one.update()
    tensors, data = one.state()
    tensors = {key: value.clone() for key, value in tensors.items()}
    parameters = {key: value.clone() for key, value in one.policy.state_dict().items()}
    data = {key: list(value) if isinstance(value, list) else value for key, value in data.items()}
    matrix = one.learn()
    torch.manual_seed(99)
    other = fresh()
    other.policy.load_state_dict(parameters)
    other.load(tensors, data)
    np.testing.assert_array_equal(other.learn(), matrix)
    assert other.steps == one.steps == one.total_steps
    for key, value in one.policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[key]), key


@pytest.mark.parametrize("name", ["ewc", "si", "replay"])
def test_a_foreign_state_is_refused(name):
    one = until_task(learner(name, passes=1), 1)
    tensors, data = one.state()
    with pytest.raises(ValueError, match="other tasks"):
        learner(name).load(tensors, data | {"rows": [[1.0]]})
    with pytest.raises(ValueError):
        learner(name, hidden=(8,)).load(tensors, data)
    key = next(key for key in tensors if key.startswith("method/0") or key.startswith("method/terms"))
    with pytest.raises(ValueError):
        learner(name).load({k: v for k, v in tensors.items() if k != key}, data)
    for other in {"none", "ewc", "si", "replay"} - {name}:
        with pytest.raises(ValueError):
            learner(other).load(tensors, data)


@pytest.fixture(scope="module")
def forgotten_by_none():
    """How much is forgotten where all tasks share their outputs, in percent."""
    return cm.forgetting_first(shared("none", 0.0))


def shared(name, strength):
    options = {"hidden": (64,), "passes": 10, "learning_rate": 3e-3, "options": {"samples": 0}}
    return learner(name, "domain", strength=strength, **options).learn()


@pytest.mark.parametrize(
    ("name", "strength"), [("ewc", 1000.0), ("online-ewc", 1000.0), ("si", 30.0), ("mas", 5.0)]
)
def test_methods_forget_less_than_none(name, strength, forgotten_by_none):
    assert forgotten_by_none > 10
    matrix = shared(name, strength)
    assert cm.forgetting_first(matrix) < 0.8 * forgotten_by_none
    assert np.diagonal(matrix, -1).min() > 65  # and yet it learns every task


def test_replay_keeps_what_is_lost_without():
    """Where all classes compete, only the last task's are left."""
    options = {"hidden": (64,), "passes": 4, "options": {"samples": 0}}
    none, replay = (learner(name, "class", **options).learn() for name in ("none", "replay"))
    assert cm.acc(none) < 35 and cm.forgetting_max(none) > 60
    assert cm.acc(replay) > 75 and cm.forgetting_max(replay) < 30


def test_a_loss_that_is_not_finite_stops_before_the_update():
    one = learner("none", optimizer="sgd", learning_rate=1e38)
    with pytest.raises(NonFiniteLossError, match="in task 0"):
        for _ in range(50):
            kept = one.network.copied()
            one.update()
    assert all(torch.equal(value, one.network.copied()[name]) for name, value in kept.items())


def test_diagnostics_are_of_the_heads():
    one = learner("none", head="neurocoder")
    assert one.diagnostics() == {}
    one.update()
    assert "actor/attention_entropy" in one.diagnostics()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ewk"}, "continual.method='ewk'"),
        ({"method": "ewc"}, r"needs its coefficient; .*100 \(task\), 100 \(domain\), 600 \(class\)"),
        ({"method": "none", "strength": 1.0}, "'none' has no coefficient"),
        ({"method": "si", "strength": math.inf}, "continual.strength=inf"),
        ({"method": "si", "strength": -1.0}, "continual.strength=-1"),
        ({"passes": 0}, "continual.passes=0"),
        ({"batch_size": 1}, "continual.batch_size=1"),
        ({"optimizer": "lion"}, "continual.optimizer='lion'"),
        ({"learning_rate": 0.0}, "continual.learning_rate=0"),
        ({"momentum": 1.0}, "continual.momentum=1"),
        ({"weight_decay": -1.0}, "continual.weight_decay=-1"),
        ({"memory_size": 0}, "continual.memory_size=0"),
        ({"fisher_samples": -1}, "continual.fisher_samples=-1"),
        ({"damping": 0.0}, "continual.damping=0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ContinualConfig(**options)


def test_presets_are_known_by_scenario_and_method():
    assert preset("domain", "si") == 3000 and preset("task", "replay") == preset("class", "none") == 0
    assert all(set(row) == set(WITH_STRENGTH) for row in PRESETS.values())
    for scenario, name in (("tasks", "si"), ("task", "sii")):
        with pytest.raises(ConfigError, match="did you mean"):
            preset(scenario, name)


def test_what_cannot_be_learned_is_refused():
    def build(env="SplitDigits", test=None, core="none", **options):
        envs = make_tasks(f"neurocoder/{env}-v0", 16, options)
        test_envs = make_tasks(f"neurocoder/{env}-v0", 16, options if test is None else test)
        config = PolicyConfig(encoder="mlp", core=core, core_size=4, head="linear", critic=False)
        policy = Policy(envs.single_observation_space, envs.single_action_space, config)
        ContinualLearner(policy, envs, test_envs, ContinualConfig(), seed=0)

    build()
    for options, message in (
        ({"env": "Digits"}, "no tasks one after the other"),
        ({"core": "lstm"}, "policy.core='lstm'"),
        ({"last": "wrap"}, "last='wrap'"),
        ({"shuffle": False}, "random order"),
        ({"test": {"order": "random"}}, "different tasks"),
        ({"test": {"scenario": "task"}}, "different tasks"),
        ({"test": {"normalize": False}}, "different tasks"),
        ({"permuted": True, "test": {"permuted": True, "order_seed": 1}}, "different tasks"),
    ):
        with pytest.raises(NeurocoderError, match=message):
            build(**options)


# ------------------------------------------------------------------------------------------- metrics

MATRIX = np.array(
    [
        [97.0, 40.0, 60.0],  # untrained
        [90.0, 45.0, 50.0],
        [95.0, 80.0, 70.0],
        [60.0, 75.0, 99.0],
    ]
)


def test_metrics_by_hand():
    assert cm.just_learned(MATRIX).tolist() == [90, 80, 99]
    assert cm.acc(MATRIX) == (60 + 75 + 99) / 3
    assert cm.bwt(MATRIX) == ((60 - 90) + (75 - 80)) / 2
    assert cm.fwt(MATRIX) == ((45 - 40) + (70 - 60)) / 2
    assert cm.forgetting_first(MATRIX) == (30 + 5) / 2
    assert cm.forgetting_max(MATRIX) == (35 + 5) / 2
    assert cm.summary(MATRIX) == {
        "acc": 78.0,
        "bwt": -17.5,
        "fwt": 7.5,
        "forgetting_max": 20.0,
        "forgetting_first": 17.5,
    }


def test_a_single_task_is_not_forgotten():
    numbers = cm.summary(np.array([[50.0], [99.0]]))
    assert numbers.pop("acc") == 99 and all(math.isnan(value) for value in numbers.values())


def test_rows_of_a_matrix():
    rows = cm.matrix_rows(MATRIX)
    assert len(rows) == 12
    assert rows[0] == {"after": 0, "task": 0, "accuracy": 97.0}
    assert rows[7] == {"after": 2, "task": 1, "accuracy": 80.0}


@pytest.mark.parametrize("matrix", [MATRIX[1:], MATRIX[:3], MATRIX[:, 0], np.zeros((0, 0)), np.zeros((1, 0))])
def test_a_matrix_that_is_not_whole_is_refused(matrix):
    with pytest.raises(ConfigError, match="expected"):
        cm.summary(matrix)


def test_paired_tests_by_hand():
    """Differences 1 … 6: t = 3.5 / (s / √6), 5 degrees of freedom; all six positive: p = 2 / 2⁶."""
    b = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    found = cm.paired_test(b + np.arange(1, 7), b)
    assert found.n == 6 and found.mean == 3.5 and found.std == pytest.approx(np.sqrt(3.5))
    assert found.wilcoxon_p == pytest.approx(2 / 2**6)
    assert found.t_p == pytest.approx(0.005934, abs=2e-5)  # t = 4.5826
    assert cm.paired_test(b, b + np.arange(1, 7)).t_p == found.t_p


def test_paired_tests_of_equal_scores_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cm.paired_test([1, 2, 3], [1, 2, 3]) == (3, 0, 0, 1, 1)
        assert cm.paired_test([2, 3, 4], [1, 2, 3]).t_p == 0


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([[1.0, 2.0]], [[1.0, 2.0]])])
def test_scores_that_are_not_paired_are_refused(a, b):
    with pytest.raises(ConfigError, match="same n"):
        cm.paired_test(a, b)
