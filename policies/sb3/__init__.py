"""Neurocoder policies for Stable-Baselines3 and sb3-contrib: give one as the first argument, change nothing else.

    from stable_baselines3 import PPO
    from neurocoder.policies.sb3 import NeurocoderPolicy

    model = PPO(NeurocoderPolicy, "CartPole-v1", policy_kwargs=dict(head="neurocoder", head_kwargs=dict(slots=30)))
    model.learn(100_000)

Every policy is SB3's own with other last layers: ``head`` is any name of ``neurocoder.policies.HEADS``,
``head_kwargs`` its options. Heads' auxiliary losses reach the gradient inside SB3's own ``train()``.
"""

from neurocoder.policies.sb3.actor_critic import (
    NeurocoderCnnPolicy,
    NeurocoderMultiInputPolicy,
    NeurocoderPolicy,
)
from neurocoder.policies.sb3.callback import ProgramCallback
from neurocoder.policies.sb3.continuous import NeurocoderSACPolicy, NeurocoderTD3Policy
from neurocoder.policies.sb3.layers import HeadLayer, add_auxiliary_loss
from neurocoder.policies.sb3.q_learning import (
    NeurocoderCnnDQNPolicy,
    NeurocoderCnnQRDQNPolicy,
    NeurocoderDQNPolicy,
    NeurocoderMultiInputDQNPolicy,
    NeurocoderQRDQNPolicy,
)
from neurocoder.policies.sb3.recurrent import (
    NeurocoderCnnLstmPolicy,
    NeurocoderLstmPolicy,
    NeurocoderMultiInputLstmPolicy,
)

__all__ = [
    "HeadLayer",
    "NeurocoderCnnDQNPolicy",
    "NeurocoderCnnLstmPolicy",
    "NeurocoderCnnPolicy",
    "NeurocoderCnnQRDQNPolicy",
    "NeurocoderDQNPolicy",
    "NeurocoderLstmPolicy",
    "NeurocoderMultiInputDQNPolicy",
    "NeurocoderMultiInputLstmPolicy",
    "NeurocoderMultiInputPolicy",
    "NeurocoderPolicy",
    "NeurocoderQRDQNPolicy",
    "NeurocoderSACPolicy",
    "NeurocoderTD3Policy",
    "ProgramCallback",
    "add_auxiliary_loss",
]
