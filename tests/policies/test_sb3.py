"""Neurocoder policies inside Stable-Baselines3 and sb3-contrib, as their users call them."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv

from neurocoder.agents.a3c import A3CConfig, loss_and_metrics
from neurocoder.agents.rollout import Rollout
from neurocoder.errors import ConfigError
from neurocoder.policies import HEADS, Policy, PolicyConfig
from neurocoder.policies.heads import HeadError
from neurocoder.policies.sb3 import (
    HeadLayer,
    NeurocoderCnnDQNPolicy,
    NeurocoderCnnLstmPolicy,
    NeurocoderCnnPolicy,
    NeurocoderCnnQRDQNPolicy,
    NeurocoderDQNPolicy,
    NeurocoderLstmPolicy,
    NeurocoderMultiInputDQNPolicy,
    NeurocoderMultiInputLstmPolicy,
    NeurocoderMultiInputPolicy,
    NeurocoderPolicy,
    NeurocoderQRDQNPolicy,
    NeurocoderSACPolicy,
    NeurocoderTD3Policy,
    ProgramCallback,
    add_auxiliary_loss,
)
from neurocoder.policies.sb3.layers import head_layers

SMALL = dict(head="neurocoder", head_kwargs=dict(slots=8, attention_heads=2))
TINY_CNN = dict(features_extractor_kwargs=dict(features_dim=16))


class Seen(gym.Env):
    """Observations of any space, five steps long; pays 1 for action 0 (or a positive one)."""

    def __init__(self, space="vector", continuous=False):
        spaces = {
            "vector": gym.spaces.Box(-1, 1, (4,), np.float32),
            "image": gym.spaces.Box(0, 255, (1, 36, 36), np.uint8),
        }
        spaces["dict"] = gym.spaces.Dict({"image": spaces["image"], "vector": spaces["vector"]})
        self.observation_space = spaces[space]
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32) if continuous else gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.time += 1
        reward = (
            float(np.ravel(action)[0] > 0)
            if isinstance(action, np.ndarray) and action.ndim
            else float(action == 0)
        )
        return self.observation_space.sample(), reward, self.time == 5, False, {}


ON_POLICY = dict(n_steps=16)
OFF_POLICY = dict(learning_starts=8, buffer_size=64, batch_size=8)
CASES = {
    "A2C": (A2C, NeurocoderPolicy, Seen, {}, {}),
    "A2C-box": (A2C, NeurocoderPolicy, lambda: Seen(continuous=True), {}, {}),
    "PPO": (PPO, NeurocoderPolicy, Seen, ON_POLICY | dict(batch_size=16), {}),
    "PPO-box": (PPO, NeurocoderPolicy, lambda: Seen(continuous=True), ON_POLICY | dict(batch_size=16), {}),
    "PPO-cnn": (PPO, NeurocoderCnnPolicy, lambda: Seen("image"), ON_POLICY | dict(batch_size=16), TINY_CNN),
    "PPO-dict": (PPO, NeurocoderMultiInputPolicy, lambda: Seen("dict"), ON_POLICY | dict(batch_size=16), {}),
    "TRPO": (TRPO, NeurocoderPolicy, Seen, ON_POLICY | dict(batch_size=16), {}),
    "RecurrentPPO": (
        RecurrentPPO, NeurocoderLstmPolicy, Seen, ON_POLICY | dict(batch_size=16), dict(lstm_hidden_size=8),
    ),
    "RecurrentPPO-cnn": (
        RecurrentPPO, NeurocoderCnnLstmPolicy, lambda: Seen("image"), ON_POLICY | dict(batch_size=16),
        TINY_CNN | dict(lstm_hidden_size=8, enable_critic_lstm=False, shared_lstm=True),
    ),
    "RecurrentPPO-dict": (
        RecurrentPPO, NeurocoderMultiInputLstmPolicy, lambda: Seen("dict"), ON_POLICY | dict(batch_size=16),
        dict(lstm_hidden_size=8, n_lstm_layers=2, enable_critic_lstm=False),
    ),
    "DQN": (DQN, NeurocoderDQNPolicy, Seen, OFF_POLICY, {}),
    "DQN-cnn": (DQN, NeurocoderCnnDQNPolicy, lambda: Seen("image"), OFF_POLICY, TINY_CNN),
    "DQN-dict": (DQN, NeurocoderMultiInputDQNPolicy, lambda: Seen("dict"), OFF_POLICY, {}),
    "QRDQN": (QRDQN, NeurocoderQRDQNPolicy, Seen, OFF_POLICY, dict(n_quantiles=5)),
    "QRDQN-cnn": (QRDQN, NeurocoderCnnQRDQNPolicy, lambda: Seen("image"), OFF_POLICY, dict(n_quantiles=5) | TINY_CNN),
    "SAC": (SAC, NeurocoderSACPolicy, lambda: Seen(continuous=True), OFF_POLICY, dict(net_arch=[16])),
    "TD3": (TD3, NeurocoderTD3Policy, lambda: Seen(continuous=True), OFF_POLICY, dict(net_arch=[16])),
}  # fmt: skip
ALGORITHMS = pytest.mark.parametrize("case", CASES)


def make(case, **policy_kwargs):
    algorithm, policy, env, kwargs, own = CASES[case]
    return algorithm(
        policy,
        env(),
        seed=0,
        device="cpu",
        policy_kwargs=copy.deepcopy({**SMALL, **own, **policy_kwargs}),
        **kwargs,
    )


def optimizers(policy):
    """Yield the policy's optimisers, with the modules whose parameters each must hold."""
    if hasattr(policy, "actor") and hasattr(policy, "critic") and isinstance(policy.critic, torch.nn.Module):
        yield policy.actor.optimizer, policy.actor
        yield policy.critic.optimizer, policy.critic
    elif hasattr(policy, "q_net"):
        yield policy.optimizer, policy.q_net
    elif hasattr(policy, "quantile_net"):
        yield policy.optimizer, policy.quantile_net
    else:
        yield policy.optimizer, policy


def observations(model, count=6):
    space = model.observation_space
    space.seed(5)
    rows = [space.sample() for _ in range(count)]
    if isinstance(space, gym.spaces.Dict):
        return {key: np.stack([row[key] for row in rows]) for key in space}
    return np.stack(rows)


def act(predictor, model):
    """Return what the predictor does, and all that its heads say meanwhile: the same actions alone prove little."""
    said = []
    layers = head_layers(getattr(predictor, "policy", predictor))
    hooks = [
        layer.register_forward_hook(lambda _, x, y: said.append(y.detach().flatten())) for layer in layers
    ]
    actions, _ = predictor.predict(observations(model), deterministic=True)
    for hook in hooks:
        hook.remove()
    assert said
    return np.concatenate([np.ravel(actions), *(y.numpy() for y in said)])


@ALGORITHMS
def test_learn_save_load_act_alike(case, tmp_path):
    model = make(case)
    layers = list(head_layers(model.policy))
    before = {layer.role: layer.head.memory_u.clone() for layer in layers}
    model.learn(48)
    assert all((layer.head.memory_u != before[layer.role]).any() for layer in layers)
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", device="cpu")
    np.testing.assert_array_equal(act(loaded, model), act(model, model))
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, loaded.policy.state_dict()[name]), name
    loaded.set_env(model.get_env())
    loaded.learn(16)  # and it goes on learning
    fresh = make(case)
    fresh.set_parameters(model.get_parameters())
    np.testing.assert_array_equal(act(fresh, model), act(model, model))


@ALGORITHMS
def test_every_parameter_is_in_its_optimizer(case):
    for optimizer, module in optimizers(make(case).policy):
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in module.named_parameters() if id(p) not in held]
        assert not missing


def test_adam_is_fused_unless_said_otherwise():
    """It learns what PyTorch's default learns; SB3's own options stay."""
    fused, plain = make("PPO"), make("PPO", optimizer_kwargs=dict(foreach=False, eps=1e-5))
    ours, default = (model.policy.optimizer.param_groups[0] for model in (fused, plain))
    assert ours["fused"] and not default["fused"] and ours["eps"] == default["eps"] == 1e-5
    for policy in (fused.policy, plain.policy):
        for _ in range(3):
            policy.optimizer.zero_grad()
            policy.predict_values(torch.ones(1, *fused.observation_space.shape)).sum().backward()
            policy.optimizer.step()
    for parameter, other in zip(fused.policy.parameters(), plain.policy.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-4, atol=1e-6)
    assert "fused" not in fused.policy.optimizer_kwargs  # what the zip says is what the user said


@ALGORITHMS
def test_a_policy_alone_is_saved_and_loaded(case, tmp_path):
    model = make(case)
    model.learn(32)
    model.policy.save(tmp_path / "policy.pth")
    loaded = type(model.policy).load(tmp_path / "policy.pth", device="cpu")
    np.testing.assert_array_equal(act(loaded, model), act(model, model))
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert loaded.head == "neurocoder" and loaded.head_kwargs == SMALL["head_kwargs"]


@pytest.mark.parametrize(
    ("case", "policy_kwargs"),
    [
        ("PPO-cnn", dict(share_features_extractor=False)),
        ("PPO-cnn", dict(share_features_extractor=False, ortho_init=False, net_arch=dict(pi=[8], vf=[12, 8]))),
        ("PPO-cnn", dict(normalize_images=False)),
        ("DQN-cnn", dict(normalize_images=False)),
        ("RecurrentPPO", dict(lstm_hidden_size=24, n_lstm_layers=2, enable_critic_lstm=False, shared_lstm=True)),
        ("RecurrentPPO", dict(lstm_hidden_size=24, share_features_extractor=False)),
        ("SAC", dict(net_arch=dict(pi=[8], qf=[12]), n_critics=3)),
    ],
)  # fmt: skip
def test_what_sb3_forgets_in_a_saved_policy_is_kept(case, policy_kwargs, tmp_path):
    model = make(case, **policy_kwargs)
    model.learn(32)
    model.policy.save(tmp_path / "policy.pth")
    loaded = type(model.policy).load(tmp_path / "policy.pth", device="cpu")
    np.testing.assert_array_equal(act(loaded, model), act(model, model))
    for name in ("share_features_extractor", "normalize_images"):
        assert getattr(loaded, name, None) == getattr(model.policy, name, None)
    if "lstm_hidden_size" not in policy_kwargs and hasattr(loaded, "predict_values"):
        seen = torch.as_tensor(observations(model))
        torch.testing.assert_close(loaded.predict_values(seen), model.policy.predict_values(seen))


@pytest.mark.parametrize("case", ["PPO", "RecurrentPPO", "PPO-cnn"])
@pytest.mark.parametrize("ortho_init", [True, False])
def test_sb3_initialises_its_trunk_and_leaves_the_heads_alone(case, ortho_init):
    policy = make(case, ortho_init=ortho_init).policy
    key = policy.action_net.head.key_u.weight
    assert key.abs().mean() > 0.05  # SB3's gain of 0.01 would have made it a fiftieth of that
    x = torch.randn(64, policy.action_net.in_features)
    assert policy.action_net(x).std() < 0.2  # a fresh agent acts nearly uniformly
    trunk = next(m for m in policy.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    flat = trunk.weight.flatten(1).double()
    gram = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
    assert torch.allclose(gram, 2 * torch.eye(len(gram)).double(), atol=1e-4) == ortho_init


@ALGORITHMS
def test_policies_are_copied_and_moved_whole(case):
    model = make(case)
    model.learn(32, callback=ProgramCallback(every=1))
    twin = copy.deepcopy(model.policy)
    np.testing.assert_array_equal(act(twin, model), act(model, model))
    parameter = next(head_layers(twin)).head.memory_u
    with torch.no_grad():
        parameter.add_(1)
    assert (next(head_layers(model.policy)).head.memory_u != parameter).all()
    moved = twin.to("meta")
    assert all(part.is_meta for part in (*moved.parameters(), *moved.buffers()))


def test_heads_are_made_on_the_policy_s_device():
    policy = make("PPO").policy
    layer = policy.action_net
    made = layers_device(torch.nn.Linear(3, 2, device="meta"))
    assert made == "meta" and layer.head.memory_u.device.type == "cpu"


def layers_device(linear):
    from neurocoder.policies.sb3.layers import replace_linear

    return replace_linear(linear, "actor", "neurocoder", {}).head.memory_u.device.type


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_in_ppo(head):
    model = make("PPO", head=head, head_kwargs={})
    before = [p.clone() for p in model.policy.action_net.parameters()]
    model.learn(32, callback=ProgramCallback(every=1))
    assert any(
        (old != new).any() for old, new in zip(before, model.policy.action_net.parameters(), strict=True)
    )


def test_a_neurocoder_head_has_its_options_here_unless_told_otherwise():
    plain = PPO(NeurocoderPolicy, "CartPole-v1", device="cpu").policy
    told = PPO(
        NeurocoderPolicy,
        "CartPole-v1",
        policy_kwargs=dict(head_kwargs=dict(attention_heads=3, orthogonality=0.1)),
        device="cpu",
    ).policy
    other = PPO(NeurocoderPolicy, "CartPole-v1", policy_kwargs=dict(head="lowrank"), device="cpu").policy
    for layer in head_layers(plain):
        assert (layer.head.attention_heads, layer.head.orthogonality) == (2, 0.01)
    for layer in head_layers(told):
        assert (layer.head.attention_heads, layer.head.orthogonality) == (3, 0.1)
    assert sum(1 for _ in head_layers(other)) == 2


def test_many_processes_of_environments():
    envs = make_vec_env("CartPole-v1", n_envs=2, seed=0, vec_env_cls=SubprocVecEnv)
    try:
        model = PPO(NeurocoderPolicy, envs, n_steps=16, batch_size=16, policy_kwargs=copy.deepcopy(SMALL))
        model.learn(32)
    finally:
        envs.close()
    assert model.num_timesteps == 32


# ---------------------------------------------------------------------------------- auxiliary loss


def test_the_added_loss_reaches_the_gradient_and_not_the_value():
    x = torch.tensor([3.0, 5.0], requires_grad=True)
    z = torch.tensor(2.0, requires_grad=True)
    y = add_auxiliary_loss(2 * x, 7 * z)
    loss = (y.sum() + y.square().sum()) / 10  # y used twice
    assert loss.item() == pytest.approx((16 + 136) / 10)
    loss.backward()
    torch.testing.assert_close(x.grad, torch.tensor([2 * (1 + 2 * 6) / 10, 2 * (1 + 2 * 10) / 10]))
    assert z.grad.item() == 7  # not 0.7, not 14


class Recorder(torch.optim.SGD):
    """Steps nowhere and keeps every gradient that it is given."""

    def __init__(self, parameters, lr, **kwargs):
        super().__init__(parameters, lr=0.0)
        self.gradients = []

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.gradients.append({id(p): None if p.grad is None else p.grad.clone() for p in parameters})


STEPS = {
    "A2C": dict(max_grad_norm=1e9),
    "PPO": dict(max_grad_norm=1e9, n_epochs=1),
    "RecurrentPPO": dict(max_grad_norm=1e9, n_epochs=1),
    "DQN": dict(max_grad_norm=1e9, gradient_steps=1, train_freq=16),
    "QRDQN": dict(max_grad_norm=1e9, gradient_steps=1, train_freq=16),
    "SAC": dict(gradient_steps=1, train_freq=16),
    "TD3": dict(gradient_steps=1, train_freq=16),
    "TRPO": dict(n_critic_updates=1),  # its optimiser is the critic's
}


def leave_orthogonality(policy):
    """Move all memories away from where their auxiliary loss is least: fresh ones are orthogonal."""
    with torch.no_grad():
        for layer in head_layers(policy):
            layer.head.memory_u.add_(0.3)


def gradients_of_one_step(case, orthogonality):
    """Return, by role, the gradient of memory_u in the first step that an unmodified `train()` takes."""
    algorithm, policy, env, kwargs, own = CASES[case]
    head_kwargs = {**SMALL["head_kwargs"], "orthogonality": orthogonality}
    policy_kwargs = {**own, "head": "neurocoder", "head_kwargs": head_kwargs, "optimizer_class": Recorder}
    options = kwargs | STEPS[case]
    model = algorithm(policy, env(), seed=0, device="cpu", policy_kwargs=policy_kwargs, **options)
    leave_orthogonality(model.policy)
    model.learn(16)
    kept = [optimizer.gradients[0] for optimizer, _ in optimizers(model.policy) if optimizer.gradients]
    found = {}
    for layer in head_layers(model.policy):
        for gradients in kept:
            if gradients.get(id(layer.head.memory_u)) is not None:
                found[layer.role] = (gradients[id(layer.head.memory_u)], layer.head)
    return found


@pytest.mark.parametrize("case", STEPS)
def test_the_auxiliary_loss_is_in_the_gradient_of_sb3_s_own_train_exactly_once(case):
    weight = 0.5
    with_loss, without = gradients_of_one_step(case, weight), gradients_of_one_step(case, 0.0)
    assert with_loss.keys() == without.keys() != set()
    for role, (gradient, head) in with_loss.items():
        (expected,) = torch.autograd.grad(weight * head.orthogonal_loss(), head.memory_u)
        assert expected.norm() > 1e-3
        torch.testing.assert_close(gradient - without[role][0], expected, rtol=1e-3, atol=1e-5)


def test_trpo_climbs_its_objective_less_the_auxiliary_loss_once():
    model = make("TRPO", head_kwargs=SMALL["head_kwargs"] | dict(orthogonality=0.5))
    policy, head = model.policy, model.policy.action_net.head
    leave_orthogonality(policy)
    seen, taken = torch.as_tensor(observations(model)), torch.tensor([0, 1, 2, 0, 1, 2])
    policy.set_training_mode(True)
    distribution = policy.get_distribution(seen)
    objective = distribution.log_prob(taken).mean()
    (made,) = torch.autograd.grad(objective, head.memory_u, retain_graph=True)
    head.orthogonality = 0.0
    (without,) = torch.autograd.grad(policy.get_distribution(seen).log_prob(taken).mean(), head.memory_u)
    (loss,) = torch.autograd.grad(0.5 * head.orthogonal_loss(), head.memory_u)
    torch.testing.assert_close(made - without, -loss, rtol=1e-3, atol=1e-6)
    # the divergence, and its second derivative, know nothing of it
    (first,) = torch.autograd.grad(distribution.entropy().mean(), head.memory_u, create_graph=True)
    head.orthogonality = 0.5
    (same,) = torch.autograd.grad(policy.get_distribution(seen).entropy().mean(), head.memory_u)
    torch.testing.assert_close(first.detach(), same)
    (second,) = torch.autograd.grad(first.square().sum(), head.memory_u)
    assert second.isfinite().all() and second.abs().max() > 0
    assert "log_prob" not in vars(policy.action_dist)  # SB3's own distribution is as it was


def test_trpo_refuses_a_head_whose_loss_belongs_to_a_batch():
    with pytest.raises(ConfigError, match="head='moe' with TRPO"):
        make("TRPO", head="moe", head_kwargs={}).learn(16)


@pytest.mark.parametrize("case", ["PPO", "RecurrentPPO"])
def test_probabilities_can_be_looked_at_while_training_mode_is_on(case):
    model = make(case)
    model.policy.set_training_mode(True)
    seen = (torch.as_tensor(observations(model)),)
    if case == "RecurrentPPO":
        zeros = torch.zeros(1, 6, 8)
        distribution, _ = model.policy.get_distribution(*seen, (zeros, zeros), torch.ones(6))
    else:
        distribution = model.policy.get_distribution(*seen)
    assert distribution.distribution.probs.shape == (6, 3)


@pytest.mark.parametrize("case", ["SAC", "TD3"])
def test_the_critics_auxiliary_loss_does_not_reach_the_actor(case):
    model = make(case, head="moe", head_kwargs=dict(balance=100.0))
    policy = model.policy
    policy.set_training_mode(True)
    seen, made = torch.as_tensor(observations(model)), torch.zeros(6, 2, requires_grad=True)
    torch.manual_seed(0)
    (0 * policy.critic.q1_forward(seen, made) + 0 * sum(policy.critic(seen, made))).sum().backward()
    assert made.grad.abs().max() == 0
    played = made.detach()
    (0 * sum(policy.critic(seen, played))).sum().backward()  # learning from what was played, it is there
    gate = next(head_layers(policy.critic)).head
    assert sum(p.grad.abs().sum() for p in gate.parameters() if p.grad is not None) > 0


def test_acting_carries_no_auxiliary_loss():
    policy = make("PPO").policy
    policy.set_training_mode(False)
    layer = policy.action_net
    x = torch.randn(4, layer.in_features)
    layer(x).sum().backward()
    acting = layer.head.memory_u.grad.clone()
    layer.head.memory_u.grad = None
    layer.head(x).sum().backward()
    torch.testing.assert_close(acting, layer.head.memory_u.grad)


def test_a2c_s_gradient_is_that_of_our_a3c_on_the_same_batch():
    model = A2C(
        NeurocoderPolicy,
        make_vec_env(Seen, n_envs=3, seed=0),
        n_steps=7,
        gamma=0.9,
        gae_lambda=0.8,
        vf_coef=0.35,
        ent_coef=0.02,
        max_grad_norm=1e9,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[], optimizer_class=Recorder, **copy.deepcopy(SMALL)),
    )
    leave_orthogonality(model.policy)
    model.learn(21)
    sb3, (gradients,) = model.policy, model.policy.optimizer.gradients

    space = model.observation_space
    ours = Policy(
        space,
        model.action_space,
        PolicyConfig(  # SB3's trunk of net_arch=[]: the heads see the observation
            encoder="mlp",
            encoder_config={"hidden": []},
            core="none",
            head="neurocoder",
            head_config=SMALL["head_kwargs"],
        ),
    )
    ours.actor, ours.critic = copy.deepcopy(sb3.action_net.head), copy.deepcopy(sb3.value_net.head)
    buffer = model.rollout_buffer
    ends = torch.as_tensor(buffer.episode_starts[1:]).bool()
    last = torch.as_tensor(model._last_episode_starts).bool()[None]
    with torch.no_grad():
        bootstrap = sb3.predict_values(torch.as_tensor(model._last_obs))[:, 0]

    def played(name):  # SB3 flattens its buffer when it learns: games first
        return torch.as_tensor(getattr(buffer, name)).view(3, 7, -1).transpose(0, 1)

    rollout = Rollout(
        observation=played("observations").float(),
        episode_start=torch.zeros(7, 3, dtype=torch.bool),
        action=played("actions")[..., 0].long(),
        log_prob=played("log_probs")[..., 0],
        reward=torch.as_tensor(buffer.rewards),
        terminated=torch.cat((ends, last)),
        truncated=torch.zeros(7, 3, dtype=torch.bool),
        truncation_value=torch.zeros(7, 3),
        bootstrap_value=bootstrap,
        initial_state=(),
    )
    config = A3CConfig(
        n_steps=7, gamma=0.9, gae_lambda=0.8, value_coefficient=2 * 0.35, entropy_coefficient=0.02
    )  # SB3's value loss has no ½
    loss, _ = loss_and_metrics(ours, rollout, config)
    loss.backward()
    for head, layer in ((ours.actor, sb3.action_net), (ours.critic, sb3.value_net)):
        for (name, mine), theirs in zip(head.named_parameters(), layer.head.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, gradients[id(theirs)], rtol=1e-3, atol=1e-6, msg=name)


# ------------------------------------------------------------------------------ callback, refusals


@ALGORITHMS
def test_the_callback_logs_the_programs_of_every_head(case):
    model = make(case)
    model.set_logger(configure(None, ["stdout"]))  # its names must stay apart when cut to 36 characters
    leave_orthogonality(model.policy)
    model.learn(64, callback=ProgramCallback(every=1), log_interval=1)
    logged = model.logger.name_to_value
    roles = {layer.role for layer in head_layers(model.policy)}
    for role in roles:
        for name in ("attention_entropy", "slot_usage", "effective_rank", "orthogonality_excess"):
            assert np.isfinite(logged[f"train/{role}/{name}"])
    expected = sum(float(layer.last_loss or 0.0) for layer in head_layers(model.policy))
    assert logged["train/aux_loss"] == pytest.approx(expected) and expected > 1e-6
    assert not any(layer._forward_pre_hooks for layer in head_layers(model.policy))


def test_the_callback_starts_anew_after_an_interrupt():
    model = make("PPO")
    callback = ProgramCallback(every=1)
    callback.init_callback(model)
    for _ in range(2):  # the second without an end of the first
        callback._on_training_start()
        assert [len(layer._forward_pre_hooks) for layer in head_layers(model.policy)] == [1, 1]


def test_the_callback_keeps_its_pace():
    model = make("PPO")
    times = []

    class Counting(ProgramCallback):
        def _record(self):
            times.append(self.num_timesteps)

    model.learn(96, callback=Counting(every=40))
    assert times == [48, 96, 96]  # rollouts end at 16, 32, …; the last is the end of training


def test_the_callback_refuses_a_policy_without_our_heads():
    with pytest.raises(
        ConfigError, match=r"policy='ActorCriticPolicy' must be one of neurocoder.policies.sb3"
    ):
        PPO("MlpPolicy", Seen(), n_steps=16, batch_size=16).learn(16, callback=ProgramCallback())
    with pytest.raises(ConfigError, match="every=0"):
        ProgramCallback(every=0)


@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [(A2C, NeurocoderPolicy), (PPO, NeurocoderPolicy), (RecurrentPPO, NeurocoderLstmPolicy), (SAC, NeurocoderSACPolicy)],
)  # fmt: skip
def test_state_dependent_exploration_is_refused_with_the_reason(algorithm, policy):
    with pytest.raises(
        ConfigError, match=r"use_sde=True: gSDE draws its noise for the weights of a last nn.Linear"
    ):
        algorithm(policy, Seen(continuous=True), use_sde=True)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(head="neurocode"), HeadError, "unknown head 'neurocode'; did you mean .*'neurocoder'"),
        (dict(head_kwargs=dict(slot=3)), HeadError, "no option 'slot'; did you mean 'slots'"),
        (dict(head_kwargs=dict(slots=0)), HeadError, "slots=0 must be"),
        (dict(head_kwargs=[("slots", 3)]), ConfigError, "head_kwargs=.* must be a dictionary"),
    ],
)
@pytest.mark.parametrize("case", ["PPO", "DQN", "SAC"])
def test_wrong_heads_are_named(case, kwargs, error, message):
    algorithm, policy, env, options, _ = CASES[case]
    with pytest.raises(error, match=message):
        algorithm(policy, env(), policy_kwargs=copy.deepcopy(kwargs), **options)


def test_target_networks_have_heads_that_do_not_learn():
    policy = make("DQN").policy
    assert isinstance(policy.q_net_target.q_net[-1], HeadLayer)
    assert [layer.role for layer in head_layers(policy)] == ["q"]
