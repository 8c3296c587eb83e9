"""Policies out of the zip files of Stable-Baselines3. They are pickles: reading one runs what it says."""

from pathlib import Path
from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file

from neurocoder.errors import ConfigError


def load_policy(path: Path, device: str = "cpu") -> BasePolicy:
    """Return the policy in `path`, saved by an algorithm of SB3 or sb3-contrib, in evaluation mode.

    Executes what the file's pickles say: for files of trusted origin only. ARS, whose weights are not where the others
    have them, is not supported.

    Raises
    ------
    ConfigError
        The file is missing or damaged, no model was saved in it, its policy cannot be built, or it was trained on
        normalised observations, whose statistics are not in it.
    """
    try:
        data, weights, _ = load_from_zip_file(path, device=device)
        if data is None or data.get("policy_class") is None or "policy" not in weights:
            raise ConfigError(f"{path}: holds no model saved by Stable-Baselines3 (expected model.save(...))")
        if data.get("_last_original_obs") is not None:
            raise ConfigError(
                f"{path}: trained with VecNormalize, whose statistics are not in the zip; score it with the RL Zoo's "
                f"enjoy, which finds them beside it"
            )
        kwargs: dict[str, Any] = dict(data["policy_kwargs"])
        if issubclass(data["policy_class"], ActorCriticPolicy):
            kwargs["use_sde"] = data["use_sde"]  # the others have it among their kwargs
        policy: BasePolicy = data["policy_class"](
            data["observation_space"], data["action_space"], lambda _: 0.0, **kwargs
        )
        policy.load_state_dict(weights["policy"])  # type: ignore[arg-type]  # a state dict, SB3 says a tensor
    except ConfigError:
        raise
    except Exception as error:  # whatever a stranger's pickle or class raises
        raise ConfigError(
            f"{path}: not readable as a zip of Stable-Baselines3: {type(error).__name__}: {error}"
        ) from error
    policy.set_training_mode(False)
    return policy.to(device)
