"""Policies for DQN and sb3-contrib's QR-DQN: the last layer of the Q-network is a head."""

from collections.abc import Mapping
from typing import Any

from sb3_contrib.qrdqn.policies import CnnPolicy as CnnQRDQNPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3.dqn.policies import CnnPolicy as CnnDQNPolicy
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.dqn.policies import MultiInputPolicy as MultiInputDQNPolicy

from neurocoder.policies.sb3.layers import HeadOptions, replace_linear


class NeurocoderQNetwork(QNetwork):
    """SB3's Q-network with a head as its last layer."""

    def __init__(self, *args: Any, head: str, head_kwargs: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.q_net[-1] = replace_linear(self.q_net[-1], "q", head, head_kwargs)


class NeurocoderQuantileNetwork(QuantileNetwork):
    """sb3-contrib's quantile network with a head as its last layer."""

    def __init__(self, *args: Any, head: str, head_kwargs: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quantile_net[-1] = replace_linear(self.quantile_net[-1], "quantiles", head, head_kwargs)


class QHeads(HeadOptions):
    """Left of a policy of DQN or QR-DQN, whose networks' constructors take the same arguments."""

    def _network_arguments(self: Any) -> dict[str, Any]:
        # no extractor given: online and target network have one of their own each
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return {**arguments, "head": self.head, "head_kwargs": self.head_kwargs}

    def make_q_net(self: Any) -> QNetwork:
        return NeurocoderQNetwork(**self._network_arguments()).to(self.device)

    def make_quantile_net(self: Any) -> QuantileNetwork:
        return NeurocoderQuantileNetwork(**self._network_arguments()).to(self.device)


class NeurocoderDQNPolicy(QHeads, DQNPolicy):
    """SB3's MlpPolicy for DQN, with a head as last layer."""


class NeurocoderCnnDQNPolicy(QHeads, CnnDQNPolicy):
    """SB3's CnnPolicy for DQN, with a head as last layer."""


class NeurocoderMultiInputDQNPolicy(QHeads, MultiInputDQNPolicy):
    """SB3's MultiInputPolicy (Dict observations) for DQN, with a head as last layer."""


class NeurocoderQRDQNPolicy(QHeads, QRDQNPolicy):
    """sb3-contrib's MlpPolicy for QR-DQN, with a head as last layer."""


class NeurocoderCnnQRDQNPolicy(QHeads, CnnQRDQNPolicy):
    """sb3-contrib's CnnPolicy for QR-DQN, with a head as last layer."""
