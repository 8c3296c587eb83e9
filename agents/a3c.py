"""A3C: asynchronous advantage actor-critic (Mnih et al. 2016, arXiv 1602.01783, algorithm S3).

Every worker plays its own batch of games with its own copy of the network (``agents.rollout``), computes one
gradient from `n_steps` steps of each game, and applies it to the shared network without waiting for the
others (``agents.hogwild`` holds the shared memory, ``agents.worker`` and ``agents.supervisor`` the processes).
What differs from the paper:

* a worker steps `envs_per_worker` games as one batch (the paper: one game);
* advantages are generalised (Schulman et al. 2016, eq. 16; gae_lambda = 1 is the paper's n-step return);
* terminated and truncated are kept apart: a truncated episode is bootstrapped from its last observation;
* losses are means over the batch, not sums;
* heads may carry an auxiliary loss (Neurocoder: the orthogonality of its program memory).

Three relatives share this file's equations: ``sync`` lets all workers share one update (A2C), ``vtrace``
corrects for the lag between acting and learning, and ``clip_range`` with ``epochs`` and ``minibatches`` learns
several times from each rollout, under PPO's objective. Minibatches are steps in any order, with advantages computed
once, where the policy has no memory; where it has one they are whole games, with advantages computed anew each time.

Read on: config, the equations as pure functions, the loss.

    neurocoder train ALE/Breakout-v5 --steps 1000000

Shape suffixes: T time (n_steps), B batch (games of one worker).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neurocoder.agents.rollout import NonFiniteLossError, Rollout
from neurocoder.agents.vtrace import vtrace
from neurocoder.errors import require
from neurocoder.policies import Policy

OPTIMIZERS = ("adam", "rmsprop")
LR_SCHEDULES = ("constant", "linear", "exponential")


@dataclass(frozen=True, slots=True)
class A3CConfig:
    """Hyper-parameters of A3C. Defaults are tuned for Atari on few cores."""

    workers: int = 2
    """Processes, each with its own games and its own copy of the network."""
    envs_per_worker: int = 16
    """Games that one worker steps as one batch."""
    n_steps: int = 20
    """Steps of each game between two updates."""
    optimizer: str = "adam"
    """adam or rmsprop; its statistics are shared by all workers."""
    learning_rate: float = 7e-4
    lr_schedule: str = "linear"
    """linear: down to zero at the last step, as in the paper, unless the next two say otherwise; exponential: by the
    same factor in every step, down to lr_final; or constant."""
    lr_final: float = 0.0
    """Where a schedule ends, and stays; exponential needs it > 0."""
    lr_steps: int = 0
    """Agent steps until then; 0: all of the run's."""
    optimizer_eps: float = 1e-5
    """Added to the denominator of Adam or RMSProp."""
    rmsprop_decay: float = 0.99
    """Decay of RMSProp's running square."""
    gamma: float = 0.99
    """Discount per agent step."""
    gae_lambda: float = 0.97
    """λ of the generalised advantage; 1 is the n-step return of the paper."""
    normalize_advantage: bool = False
    """Shift and scale each update's advantages to mean 0 and deviation 1, so that a game's rewards and the
    entropy bonus keep their proportion."""
    entropy_coefficient: float = 0.01
    entropy_final: float = 0.0
    """What the entropy's coefficient has fallen to, in a straight line, after entropy_steps."""
    entropy_steps: int = 0
    """Agent steps until then; 0: it stays as it is."""
    value_coefficient: float = 0.5
    max_grad_norm: float = 1.0
    """Gradients longer than this are scaled down to it; 0 switches clipping off."""
    reward_clip: float = 1.0
    """Rewards are cut to ± this for learning only; 0 keeps them as they are."""
    extra_sticky: float = 0.0
    """Probability with which a training game repeats the action of the step before in place of the one drawn: on top of
    what the environment does, and never in evaluations. It falls in a straight line to 0 at extra_sticky_steps."""
    extra_sticky_steps: int = 0
    """Agent steps until then; 0: all of the run's."""
    env_groups: int = 1
    """Groups that a worker's games are split into; 2 keep the emulators busy while the network works on the
    other group, where processors are to spare for them (see `neurocoder bench a3c`)."""
    sync: bool = False
    """All workers wait for each other and share one update (A2C) instead of one each (A3C)."""
    vtrace: bool = False
    """Learn at the newest parameters, with V-trace's correction for having acted with older ones."""
    epochs: int = 1
    """How often each rollout is learned from; more than once needs clip_range or vtrace."""
    minibatches: int = 1
    """Parts that a rollout is split into anew in each epoch, with one update each: its steps, or with a core or V-trace its
    games."""
    clip_range: float = 0.0
    """ε of PPO's clipped objective; 0: the policy gradient of A3C."""

    def __post_init__(self) -> None:
        for name in ("workers", "envs_per_worker", "n_steps", "env_groups", "epochs", "minibatches"):
            require(getattr(self, name) >= 1, f"a3c.{name}", getattr(self, name), ">= 1")
        require(
            self.envs_per_worker % self.env_groups == 0,
            "a3c.env_groups",
            self.env_groups,
            f"a divisor of envs_per_worker={self.envs_per_worker}",
        )
        require(
            not self.vtrace or self.games_per_rollout % self.minibatches == 0,
            "a3c.minibatches",
            self.minibatches,
            f"a divisor of the {self.games_per_rollout} games of a rollout, which V-trace needs whole",
        )
        require(
            self.games_per_rollout * self.n_steps % self.minibatches == 0,
            "a3c.minibatches",
            self.minibatches,
            f"a divisor of the {self.games_per_rollout * self.n_steps} steps of a rollout",
        )
        corrected = self.vtrace or self.clip_range > 0
        for name in ("epochs", "minibatches"):  # all but the first update are of a policy that did not act
            value = getattr(self, name)
            require(value == 1 or corrected, f"a3c.{name}", value, "1 without clip_range or vtrace")
        require(
            not (self.vtrace and self.clip_range), "a3c.clip_range", self.clip_range, "0 with vtrace=True"
        )
        for name in ("learning_rate", "optimizer_eps"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"a3c.{name}", value, "finite and > 0")
        for name in ("lr_steps", "entropy_steps", "extra_sticky_steps"):
            require(getattr(self, name) >= 0, f"a3c.{name}", getattr(self, name), ">= 0")
        require(0 <= self.extra_sticky <= 0.5, "a3c.extra_sticky", self.extra_sticky, "in [0, 0.5]")
        for name in (
            "lr_final",
            "entropy_coefficient",
            "entropy_final",
            "value_coefficient",
            "max_grad_norm",
            "reward_clip",
            "clip_range",
        ):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"a3c.{name}", value, "finite and >= 0")
        for name in ("gamma", "gae_lambda", "rmsprop_decay"):
            require(0 <= getattr(self, name) <= 1, f"a3c.{name}", getattr(self, name), "in [0, 1]")
        for name, known in (("optimizer", OPTIMIZERS), ("lr_schedule", LR_SCHEDULES)):
            require(getattr(self, name) in known, f"a3c.{name}", getattr(self, name), f"one of {known}")
        if self.lr_schedule == "exponential":
            require(self.lr_final > 0, "a3c.lr_final", self.lr_final, '> 0 with lr_schedule="exponential"')

    @property
    def games_per_rollout(self) -> int:
        """Games that are played, and learned from, as one batch."""
        return self.envs_per_worker // self.env_groups

    @property
    def updates_per_rollout(self) -> int:
        """Updates that one rollout is worth."""
        return self.epochs * self.minibatches

    @property
    def keeps_acting_pass(self) -> bool:
        """Whether the one update of a rollout is computed where it was acted: at the same parameters."""
        return self.updates_per_rollout == 1 and not self.vtrace

    @property
    def steps_per_rollout(self) -> int:
        """Agent steps in one worker's update."""
        return self.n_steps * self.envs_per_worker


# --------------------------------------------------------------------------------------- equations


def generalized_advantage(
    reward_TB: Tensor,
    value_TB: Tensor,
    next_value_TB: Tensor,
    terminated_TB: Tensor,
    truncated_TB: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return Âₜ = Σ_k (γλ)ᵏ δₜ₊ₖ with δₜ = rₜ + γ V(sₜ₊₁) − V(sₜ) (Schulman et al. 2016, eqs. 12, 16), [T, B].

    ============== ===== =======================================================================
    reward_TB      T, B  rₜ, paid for the action at t
    value_TB       T, B  V(sₜ)
    next_value_TB  T, B  V of the state that this step led to; where truncated, of the last one
    terminated_TB  T, B  bool: that state is final and worth nothing
    truncated_TB   T, B  bool: the episode was cut there, its value counts, the sum ends
    ============== ===== =======================================================================
    """
    alive = (~terminated_TB).to(reward_TB.dtype)
    same_episode = (~(terminated_TB | truncated_TB)).to(reward_TB.dtype)
    delta_TB = reward_TB + gamma * alive * next_value_TB - value_TB
    advantage_TB = torch.empty_like(delta_TB)
    running_B = torch.zeros_like(delta_TB[0])
    for t in reversed(range(len(delta_TB))):
        running_B = delta_TB[t] + gamma * gae_lambda * same_episode[t] * running_B
        advantage_TB[t] = running_B
    return advantage_TB


def normalize(advantage: Tensor) -> Tensor:
    """Return the advantages with mean 0 and standard deviation 1; all zeros if they do not differ."""
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)


def policy_gradient_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Return −mean(log π(aₜ|sₜ) · Âₜ); the advantage is a constant (algorithm S3, dθ)."""
    return -(log_prob * advantage.detach()).mean()


def clipped_surrogate_loss(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Return −mean(min(r·Â, clip(r, 1 − ε, 1 + ε)·Â)) with r = π/μ (Schulman et al. 2017, "PPO", eq. 7).

    `log_ratio` is log π(aₜ|sₜ) − log μ(aₜ|sₜ), μ being the policy that acted; the advantage is a constant. Where
    π = μ, value and gradient are those of the policy gradient, but for a constant.
    """
    ratio, advantage = log_ratio.exp(), advantage.detach()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    """Return ½·mean((Rₜ − V(sₜ))²); the target is a constant (algorithm S3, dθ_v)."""
    return 0.5 * (target.detach() - value).square().mean()


def learning_rate(config: A3CConfig, agent_steps: int, total_steps: int) -> float:
    """Return the learning rate for the update that ends at `agent_steps` of `total_steps`."""
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = min(1.0, agent_steps / (config.lr_steps or total_steps))
    if config.lr_schedule == "exponential":
        return config.learning_rate * (config.lr_final / config.learning_rate) ** done
    return config.learning_rate + done * (config.lr_final - config.learning_rate)


def with_entropy_of(config: A3CConfig, agent_steps: int) -> A3CConfig:
    """Return `config` with the entropy's coefficient that the update has which begins at `agent_steps`."""
    if not config.entropy_steps:
        return config
    done = min(1.0, agent_steps / config.entropy_steps)
    fallen = done * (config.entropy_final - config.entropy_coefficient)
    return replace(config, entropy_coefficient=config.entropy_coefficient + fallen)


def extra_sticky(config: A3CConfig, agent_steps: int, total_steps: int) -> float:
    """Return the probability of repeated actions for the rollout that begins at `agent_steps` of `total_steps`."""
    done = min(1.0, agent_steps / (config.extra_sticky_steps or total_steps))
    return config.extra_sticky * (1 - done)


# -------------------------------------------------------------------------------------------- loss


def advantage_and_target(
    rollout: Rollout, value_TB: Tensor, log_ratio_TB: Tensor, config: A3CConfig
) -> tuple[Tensor, Tensor]:
    """Return advantages, normalised if `config` says so, and what V should have been, [T, B] each.

    ============ ===== ==================================================
    value_TB     T, B  V of the rollout's observations
    log_ratio_TB T, B  log π(aₜ|sₜ) − log μ(aₜ|sₜ); only V-trace needs it
    ============ ===== ==================================================
    """
    reward_TB = rollout.reward
    if config.reward_clip:
        reward_TB = reward_TB.clamp(-config.reward_clip, config.reward_clip)
    course = (
        reward_TB,
        value_TB,
        rollout.next_value(value_TB),
        rollout.terminated,
        rollout.truncated,
        config.gamma,
        config.gae_lambda,
    )
    if config.vtrace:
        advantage_TB, target_TB = vtrace(log_ratio_TB, *course)
    else:
        advantage_TB = generalized_advantage(*course)
        target_TB = advantage_TB + value_TB
    return normalize(advantage_TB) if config.normalize_advantage else advantage_TB, target_TB


@torch.no_grad()
def assessed(policy: Policy, rollout: Rollout, config: A3CConfig) -> Rollout:
    """Return `rollout` with the advantages and targets that it has under `policy` as it is now.

    Single steps can then be learned from (``Rollout.steps``) in any order. If the rollout has a tape, `policy` must have
    the parameters that acted: only its heads are asked again.
    """
    device = next(policy.parameters()).device
    output, _, _ = policy.evaluate(
        rollout.observation.to(device),
        rollout.initial_state,
        rollout.episode_start.to(device),
        rollout.tape,
    )
    log_prob_TB = policy.distribution(output.logits).log_prob(rollout.action.to(device))
    log_ratio_TB = log_prob_TB.float().cpu() - rollout.log_prob
    advantage_TB, target_TB = advantage_and_target(rollout, output.value.float().cpu(), log_ratio_TB, config)
    return replace(rollout, advantage=advantage_TB, target=target_TB)


def loss_and_metrics(
    policy: Policy, rollout: Rollout, config: A3CConfig, *, diagnostics: bool = True
) -> tuple[Tensor, dict[str, float]]:
    """Return the scalar loss of `rollout` under `policy`, with its graph, and the parts as numbers.

    With `diagnostics`, those of the heads are among them.

    With `config.keeps_acting_pass`, `policy` must have the parameters that acted: what the rollout's tape kept of
    the acting pass is not computed again.
    """
    device = next(policy.parameters()).device
    observation = rollout.observation.to(device)
    output, features, auxiliary = policy.evaluate(
        observation,
        rollout.initial_state,
        rollout.episode_start.to(device),
        rollout.tape if config.keeps_acting_pass else None,
    )
    value_TB = output.value.float()
    distribution = policy.distribution(output.logits)
    log_prob_TB = distribution.log_prob(rollout.action.to(device))

    known_value_TB = value_TB.detach().cpu()
    known_log_ratio_TB = log_prob_TB.detach().float().cpu() - rollout.log_prob
    if rollout.advantage is not None and rollout.target is not None:
        advantage_TB, target_TB = rollout.advantage, rollout.target
    else:
        advantage_TB, target_TB = advantage_and_target(rollout, known_value_TB, known_log_ratio_TB, config)
    advantage_TB = advantage_TB.to(device)
    if config.clip_range:
        log_ratio_TB = log_prob_TB - rollout.log_prob.to(device)
        policy_part = clipped_surrogate_loss(log_ratio_TB, advantage_TB, config.clip_range)
    else:
        policy_part = policy_gradient_loss(log_prob_TB, advantage_TB)
    value_part = value_loss(value_TB, target_TB.to(device))
    entropy = distribution.entropy().mean()
    loss = (
        policy_part + config.value_coefficient * value_part - config.entropy_coefficient * entropy + auxiliary
    )
    metrics = {
        "loss": loss.item(),
        "policy_loss": policy_part.item(),
        "value_loss": value_part.item(),
        "entropy": entropy.item(),
        "aux_loss": auxiliary.item(),
        "value": float(known_value_TB.mean()),
        "off_policy": float(known_log_ratio_TB.abs().mean()),
    }
    if diagnostics:
        metrics |= policy.diagnostics(features[-1])  # one step: enough for a curve, a fraction of the cost
    if not math.isfinite(metrics["loss"]):
        raise NonFiniteLossError(f"loss {metrics['loss']}; the update was not applied")
    return loss, metrics
