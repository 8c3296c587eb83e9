"""Supervised learning: losses against loops, exact continuation, and whole runs from the command line's recipes."""

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.agents import supervised as sv
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.agents.supervised import SupervisedConfig, SupervisedLearner, evaluate_predictions
from neurocoder.envs import Curriculum, make_tasks
from neurocoder.envs.tasks import score
from neurocoder.errors import ConfigError, NeurocoderError
from neurocoder.policies import Policy, PolicyConfig

DISCRETE, BITS, BOX = gym.spaces.Discrete(5), gym.spaces.MultiBinary(4), gym.spaces.Box(-9, 9, (4,))


def drawn(space, shape):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(*shape, 5 if space is DISCRETE else 4))
    if space is DISCRETE:
        return logits, generator.integers(0, 5, shape)
    if space is BITS:
        return logits, generator.integers(0, 2, (*shape, 4))
    return logits, generator.normal(size=(*shape, 4))


def slow_loss(space, logits, target):
    if space is DISCRETE:
        return math.log(sum(math.exp(v) for v in logits)) - logits[target]
    if space is BITS:
        return sum(
            -math.log(1 / (1 + math.exp(-v))) if bit else -math.log(1 - 1 / (1 + math.exp(-v)))
            for v, bit in zip(logits, target, strict=True)
        )
    return sum((v - t) ** 2 for v, t in zip(logits, target, strict=True)) / 4


@pytest.mark.parametrize("space", [DISCRETE, BITS, BOX])
def test_losses_equal_their_definitions(space):
    logits, target = drawn(space, (3, 2))
    losses = sv.step_losses(space, torch.from_numpy(logits), torch.from_numpy(target))
    expected = [[slow_loss(space, logits[t, b], target[t, b]) for b in range(2)] for t in range(3)]
    np.testing.assert_allclose(losses, expected, rtol=1e-10)


@pytest.mark.parametrize("space", [DISCRETE, BITS, BOX])
def test_rewards_equal_the_environments(space):
    logits, target = drawn(space, (7, 3))
    mask = np.arange(7)[:, None].repeat(3, 1) % 2 == 0
    rewards = sv.step_rewards(space, *map(torch.from_numpy, (logits, target, mask)))
    action = logits.argmax(-1) if space is DISCRETE else (logits > 0) * 1 if space is BITS else logits
    expected = [score(action[t], target[t], mask[t], space) for t in range(7)]
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)


def test_only_masked_steps_count():
    values = torch.tensor([[1.0, 2.0], [3.0, 1e30]])
    assert sv.masked_mean(values, torch.tensor([[True, True], [True, False]])) == 2
    assert sv.masked_mean(values, torch.zeros(2, 2, dtype=torch.bool)) == 0


def test_other_targets_are_refused():
    with pytest.raises(ConfigError, match="MultiDiscrete"):
        sv.step_losses(gym.spaces.MultiDiscrete([2, 2]), torch.zeros(1, 4), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [1, 1, 1]), ("linear", [1, 0.5, 0]), ("cosine", [1, 0.5, 0])]
)
def test_schedules(schedule, expected):
    config = SupervisedConfig(learning_rate=1.0, lr_schedule=schedule)
    np.testing.assert_allclose([sv.learning_rate(config, x) for x in (0, 0.5, 1)], expected, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"optimizer": "lion"},
        {"learning_rate": 0.0},
        {"lr_schedule": "step"},
        {"momentum": 1.0},
        {"max_grad_norm": -1.0},
        {"max_grad_value": math.nan},
        {"weight_decay": -1.0},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SupervisedConfig(**options)


def digits(config=None, head="linear", seed=0, total=40_000, **options):
    envs = make_tasks("neurocoder/Digits-v0", 32, options)
    torch.manual_seed(seed)
    policy = Policy(
        envs.single_observation_space,
        envs.single_action_space,
        PolicyConfig(encoder="mlp", core="none", head=head, critic=False),
    )
    return SupervisedLearner(policy, envs, config or SupervisedConfig(batch_size=32), total, seed=seed)


def polynomial(optimizer="adam", total=20_000):
    envs = make_tasks("neurocoder/Polynomial-v0", 8, {"length": 20, "chunks": 2})
    torch.manual_seed(0)
    policy = Policy(
        envs.single_observation_space,
        envs.single_action_space,
        PolicyConfig(encoder="mlp", core="gru", core_size=8, head="moe", critic=False),
    )
    config = SupervisedConfig(
        batch_size=8, optimizer=optimizer, momentum=0.5, lr_schedule="linear", max_grad_norm=1.0
    )
    return SupervisedLearner(policy, envs, config, total, seed=3)


@pytest.mark.parametrize("optimizer", sv.OPTIMIZERS)
@pytest.mark.parametrize("make", [digits, polynomial])
def test_it_goes_on_bit_by_bit(make, optimizer):
    """Streams and sequences, with noise in the head (moe) and a schedule."""

    def fresh():
        if make is polynomial:
            return polynomial(optimizer)
        return digits(
            SupervisedConfig(batch_size=32, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
        )

    learner = fresh()
    for _ in range(5):
        learner.update()
    tensors, data = learner.state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    parameters = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    for _ in range(4):
        learner.update()
    torch.manual_seed(99)
    other = fresh()
    other.policy.load_state_dict(parameters)
    other.load(tensors, data)
    for _ in range(4):
        other.update()
    assert other.steps == learner.steps
    for name, value in learner.policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[name]), name


def copying(**plan):
    envs = make_tasks("neurocoder/Copy-v0", 4, {"max_length": 9})
    torch.manual_seed(0)
    policy = Policy(
        envs.single_observation_space,
        envs.single_action_space,
        PolicyConfig(encoder="mlp", core="lstm", core_size=4, head="linear", critic=False),
    )
    config = SupervisedConfig(batch_size=4, curriculum=sv.CurriculumConfig(**plan))
    return SupervisedLearner(policy, envs, config, 10**6, seed=0)


def test_a_curriculum_lengthens_sequences_and_goes_on_where_it_was():
    plan = {"start": {"max_length": 1}, "end": {"max_length": 9}, "updates": 40}
    learner = copying(**plan)
    lengths = [learner.update().length for _ in range(30)]
    assert lengths[:2] == [3, 3] and max(lengths) > 9
    assert all(length <= 2 * round(1 + 8 * k / 40) + 1 for k, length in enumerate(lengths))
    state = learner.state()
    other = copying(**plan)
    other.load(*state)
    assert [other.update().length for _ in range(20)] == [learner.update().length for _ in range(20)]
    assert max(learner.update().length for _ in range(40)) == 19


def test_options_of_a_curriculum_grow_together():
    envs = make_tasks("neurocoder/Copy-v0", 4, {"max_length": 9})
    grown = Curriculum(envs.task, {"min_length": 1, "max_length": 2}, {"min_length": 5, "max_length": 9}, 8)
    assert [grown.values(index)["min_length"] for index in (0, 2, 4, 8, 99)] == [1, 2, 3, 5, 5]
    assert [grown.values(index)["max_length"] for index in (0, 2, 4, 8, 99)] == [2, 4, 6, 9, 9]  # 3.75, 5.5
    lengths = [(len(grown.draw(0, index, 3).inputs) - 1) // 2 for index in range(200)]
    assert lengths[0] in (1, 2) and set(lengths[8:]) == {5, 6, 7, 8, 9}
    beyond = {"min_length": 30, "max_length": 40}  # each alone would not go with the other's own value
    assert len(Curriculum(envs.task, beyond, beyond, 0).draw(0, 0, 1).inputs) >= 61


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (dict(start={"max_lenght": 1}, end={"max_lenght": 9}, updates=9), "no option 'max_lenght'"),
        (dict(start={"max_length": 0}, end={"max_length": 9}, updates=9), "max_length=0"),
        (dict(start={"max_length": 1}, updates=9), r"curriculum.end={} must be a value for each of start="),
        (dict(updates=-1), "supervised.curriculum.updates=-1"),
        (
            dict(start={"bits": 2}, end={"bits": 8}, updates=5),
            "Copy with bits=2: observations and actions of another",
        ),
    ],
)
def test_an_impossible_curriculum_is_refused(plan, message):
    with pytest.raises(NeurocoderError, match=message):
        copying(**plan)


def remembering(sizes, core="ntm"):
    envs = make_tasks("neurocoder/Copy-v0", 4, {"max_length": 9})
    torch.manual_seed(0)
    options = {"rows": 20} if core == "ntm" else {}
    policy = Policy(
        envs.single_observation_space,
        envs.single_action_space,
        PolicyConfig(encoder="mlp", core=core, core_size=4, core_config=options, head="linear", critic=False),
    )
    config = SupervisedConfig(batch_size=4, learning_rate=0.1, memory_rows=sizes)
    return SupervisedLearner(policy, envs, config, 10**6, seed=0)


def test_memories_take_turns():
    """A learner whose memory somebody else resizes before each batch is the oracle."""
    turning, resized, fixed = remembering([3, 5]), remembering([]), remembering([])
    for turn in range(6):
        resized.policy.core.resize([3, 5][turn % 2])
        if turn == 3:  # goes on with the memory whose turn it is
            state, parameters = turning.state(), turning.policy.state_dict()
            turning = remembering([3, 5])
            turning.policy.load_state_dict(parameters)
            turning.load(*state)
        losses = [learner.update().loss for learner in (turning, resized, fixed)]
        assert losses[0] == losses[1] and turning.policy.core.rows == 20
    assert losses[0] != losses[2]
    for ours, other in zip(turning.policy.parameters(), resized.policy.parameters(), strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize(
    ("sizes", "core", "message"),
    [
        ([24, 2], "ntm", "rows=2 must be >= 3"),
        ([24, 0], "ntm", "rows=0 must be an integer >= 1"),
        ([24], "lstm", r"supervised.memory_rows=\[24\]: core 'lstm' has no memory; use core 'ntm'"),
    ],
)
def test_a_memory_that_cannot_be_is_refused(sizes, core, message):
    with pytest.raises(ConfigError, match=message):
        remembering(sizes, core)


def test_a_foreign_state_is_refused():
    learner = digits()
    learner.update()
    tensors, data = learner.state()
    tensors["0/exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match="shape"):
        digits().load(tensors, data)


def cut(gradients):
    return [gradient.clamp(-1e-3, 1e-3) for gradient in gradients]


def shortened(gradients):
    length = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    assert length > 0.1
    return [gradient * 0.1 / length for gradient in gradients]


@pytest.mark.parametrize(
    ("limit", "limited"), [({"max_grad_value": 1e-3}, cut), ({"max_grad_norm": 0.1}, shortened)]
)
def test_one_update_is_one_step_of_its_own_gradient(limit, limited):
    config = SupervisedConfig(batch_size=32, optimizer="sgd", learning_rate=0.1, **limit)
    learner = digits(config, head="neurocoder")
    before = [p.detach().clone() for p in learner.policy.parameters()]
    batch = sv.Batch(*(None if part is None else part.clone() for part in next(learner._batches)))
    learner._batches = iter([batch])
    learner.update()
    twin = digits(config, head="neurocoder")
    with torch.no_grad():
        for parameter, value in zip(twin.policy.parameters(), before, strict=True):
            parameter.copy_(value)
    logits, auxiliary = sv.predict(twin.policy, batch)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.target.flatten()) + auxiliary
    assert auxiliary > 0
    gradients = limited(torch.autograd.grad(loss, list(twin.policy.parameters())))
    for value, parameter, gradient in zip(before, learner.policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), value - 0.1 * gradient)


def test_updates_take_the_learning_rate_of_their_time():
    learner = digits(SupervisedConfig(batch_size=32, learning_rate=0.1, lr_schedule="linear"), total=128)
    rates = []
    while learner.steps < 128:
        learner.update()
        rates.append(learner.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.05, 0.025])


def test_diagnostics_do_not_touch_running_statistics():
    envs = make_tasks("neurocoder/Digits-v0", 4)
    made_of = PolicyConfig(encoder="densenet100", core="none", critic=False)
    policy = Policy(envs.single_observation_space, envs.single_action_space, made_of)
    learner = SupervisedLearner(policy, envs, SupervisedConfig(batch_size=4), total_steps=8, seed=0)
    learner.update()
    before = [buffer.clone() for buffer in policy.buffers()]
    assert learner.diagnostics() and len(before) > 100
    assert all(torch.equal(a, b) for a, b in zip(before, policy.buffers(), strict=True))


def test_a_loss_that_is_not_finite_stops_before_the_update():
    learner = digits(SupervisedConfig(batch_size=32, optimizer="sgd", learning_rate=1e38))
    with pytest.raises(NonFiniteLossError, match="agent steps"):
        for _ in range(50):
            kept = [p.detach().clone() for p in learner.policy.parameters()]
            learner.update()
    assert all(torch.equal(a, b) for a, b in zip(kept, learner.policy.parameters(), strict=True))


@pytest.mark.parametrize("head", ["linear", "neurocoder"])
def test_digits_are_learned_by_gradient(head):
    learner = digits(head=head, total=60_000)
    while learner.steps < 60_000:
        learner.update()
    envs = make_tasks("neurocoder/Digits-v0", 64, {"split": "test", "last": "partial", "shuffle": False})
    result = evaluate_predictions(learner.policy, envs, envs.task.passes(64), seed=0)
    assert result.scored == envs.task.n and result.returns[0] > 93  # chance: 10


def test_evaluation_counts_every_image_once():
    learner = digits()
    options = {"split": "test", "last": "partial", "shuffle": False}
    results = []
    for size in (7, 64, 1000):
        envs = make_tasks("neurocoder/Digits-v0", size, options)
        results.append(evaluate_predictions(learner.policy, envs, envs.task.passes(size), seed=0))
    data = envs.task.data
    with torch.no_grad():
        seen = torch.from_numpy(envs.task._float(data.images))
        logits = learner.policy.actor(learner.policy.encoder(seen))
    accuracy = 100 * (logits.argmax(-1).numpy() == data.labels).mean()
    for result in results:
        assert result.scored == len(data.labels)
        assert result.returns == [pytest.approx(accuracy)]
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5)


def test_sequences_are_evaluated_one_by_one():
    learner = polynomial()
    result = evaluate_predictions(learner.policy, learner.envs, 3, seed=1)
    assert len(result.returns) == 24 and result.length == 20 and result.scored == 480
    assert np.mean(result.returns) == pytest.approx(-20 * result.loss, rel=1e-5)


def test_polynomials_are_learned():
    learner = polynomial(total=10**9)
    learner.config = replace(learner.config, lr_schedule="constant", learning_rate=3e-3)
    before = evaluate_predictions(learner.policy, learner.envs, 20, seed=1).loss
    learner = polynomial(total=10**9)
    learner.config = replace(learner.config, lr_schedule="constant", learning_rate=3e-3)
    for _ in range(300):
        learner.update()
    assert evaluate_predictions(learner.policy, learner.envs, 20, seed=1).loss < 0.6 * before
