"""``neurocoder features``."""

from typing import Annotated

from cyclopts import Parameter


def features(
    dataset: str,
    /,
    *,
    encoder: str = "efficientnet_lite0",
    size: int = 96,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    device: str = "cpu",
) -> int:
    """Compute what a frozen encoder makes of a data set's images, once: tasks show it with `features=ENCODER-SIZE`.

    It is kept below NEUROCODER_DATA, or in the cache where that is not set.

    Parameters
    ----------
    dataset
        digits, mnist, cifar10 or cifar100.
    encoder
        Its name; efficientnet_lite0 comes with its ImageNet weights (extra `vision`).
    size
        Height and width that images are enlarged to.
    set_
        Options of the encoder, KEY=VALUE in TOML. May be given several times.
    device
        cpu, cuda or cuda:N.
    """
    from neurocoder.errors import require
    from neurocoder.runs.config import parse_override
    from neurocoder.runs.features import compute_showing_progress, features_name
    from neurocoder.runs.preparation import check_device

    require(1 <= size <= 1024, "--size", size, "in [1, 1024]")
    check_device(device)
    options = dict(parse_override(text) for text in set_)
    if encoder == "efficientnet_lite0":
        options = {"weights": "pretrained", **options}
    folder = compute_showing_progress(dataset, encoder, size, options, device=device)
    name = features_name(encoder, size)
    print(f"{folder}\nuse them: neurocoder train ENV --set env_options.features={name}")
    return 0
