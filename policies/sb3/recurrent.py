"""Policies for sb3-contrib's RecurrentPPO.

Batches of sequences are padded there, and the padding is masked out of the loss only. A head whose auxiliary loss
looks at the batch (``moe``) sees the padding; Neurocoder's depends on parameters only.
"""

from typing import Any

from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)

from neurocoder.policies.sb3.actor_critic import ActorCriticHeads


class RecurrentHeads(ActorCriticHeads):
    """Left of a recurrent policy of sb3-contrib. It makes the optimiser anew after the LSTMs: heads are in it."""

    def _get_constructor_parameters(self: Any) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return {
            **parameters,
            "lstm_hidden_size": self.lstm_actor.hidden_size,
            "n_lstm_layers": self.lstm_actor.num_layers,
            "shared_lstm": self.shared_lstm,
            "enable_critic_lstm": self.enable_critic_lstm,
            "lstm_kwargs": self.lstm_kwargs,
        }


class NeurocoderLstmPolicy(RecurrentHeads, RecurrentActorCriticPolicy):
    """MlpLstmPolicy for RecurrentPPO, with heads for actor and critic."""


class NeurocoderCnnLstmPolicy(RecurrentHeads, RecurrentActorCriticCnnPolicy):
    """CnnLstmPolicy for RecurrentPPO, with heads for actor and critic."""


class NeurocoderMultiInputLstmPolicy(RecurrentHeads, RecurrentMultiInputActorCriticPolicy):
    """MultiInputLstmPolicy (Dict observations) for RecurrentPPO, with heads for actor and critic."""
