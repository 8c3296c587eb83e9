"""Policies out of the zip files of Stable-Baselines3. They are pickles: reading one runs what it says."""

import zipfile
from pathlib import Path
from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file

from neurocoder.errors import ConfigError


def load_policy(path: Path, device: str = "cpu") -> BasePolicy:
    """Return the policy in `path`, which any algorithm of SB3 or sb3-contrib has saved, in evaluation mode.

    Executes what the file's pickles say: for files of trusted origin only.

    Raises
    ------
    ConfigError
        The file is missing or damaged, no model was saved in it, or its policy's class cannot be imported.
    """
    try:
        data, weights, _ = load_from_zip_file(path, device=device)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, ImportError) as error:
        raise ConfigError(f"{path}: not readable as a zip of Stable-Baselines3: {error}") from None
    policy_class = (data or {}).get("policy_class")
    if data is None or policy_class is None or "policy" not in weights:
        raise ConfigError(f"{path}: holds no model saved by Stable-Baselines3 (expected model.save(...))")
    kwargs: dict[str, Any] = dict(data["policy_kwargs"])
    if issubclass(policy_class, ActorCriticPolicy):
        kwargs["use_sde"] = data["use_sde"]  # the others have it among their kwargs
    policy: BasePolicy = policy_class(
        data["observation_space"], data["action_space"], lambda _: 0.0, **kwargs
    )
    policy.load_state_dict(weights["policy"])  # type: ignore[arg-type]  # a state dict, SB3 says a tensor
    policy.set_training_mode(False)
    return policy.to(device)
