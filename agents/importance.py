"""How much each parameter matters to what has been learned: the equations of continual learning's penalties.

Shape suffixes: B batch, O outputs, N tasks.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from neurocoder.agents.probes import Parts, Probe, probes_of
from neurocoder.policies import Policy

Parameters = dict[str, Tensor]
"""Tensors by the name of the parameter that they belong to."""
CHUNK = 128
"""Images whose gradients are there at once, at most."""
COPIED = 1 << 26
"""Numbers in the gradients that are there at once, at most: every image has all of the parameters without a probe."""


class Samples(NamedTuple):
    """Images [B, ...], their targets [B] and the numbers of their tasks [B]."""

    observation: Tensor
    target: Tensor
    task: Tensor


class Network(nn.Module):
    """A policy as a function of images alone: what importances are computed from."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor) -> Tensor:
        """Return the logits [B, O] of images [B, ...]."""
        start = torch.ones(len(observation), dtype=torch.bool, device=observation.device)
        return self.policy.act(observation, self.policy.initial_state(len(observation)), start)[0]

    def learned(self) -> Parameters:
        """Return the parameters that are not frozen: themselves, no copies."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def copied(self) -> Parameters:
        """Return copies of the parameters that are not frozen."""
        return {name: p.detach().clone() for name, p in self.learned().items()}


def competing(logits: Tensor, mask: Tensor) -> Tensor:
    """Return `logits` [..., O], minus infinity where `mask` [..., O] says that an output does not compete."""
    return logits.masked_fill(~mask, -math.inf)


def quadratic_penalty(parameters: Parameters, anchor: Parameters, importance: Parameters) -> Tensor:
    """Return Σ_i Ω_i (θ_i - θ*_i)²: Kirkpatrick et al. 2017, eq. 3; Zenke et al. 2017, eq. 4; Aljundi et al. 2018, eq. 4.

    Without the ½ that eq. 3 has: Hsu et al.'s coefficients are for this.
    """
    terms = [(importance[name] * (p - anchor[name]).square()).sum() for name, p in parameters.items()]
    return torch.stack(terms).sum()


@dataclass(frozen=True, slots=True)
class Penalty:
    """What tasks before have against a network's parameters: strength · Σ Σ_i Ω_i (θ_i - θ*_i)² over its terms."""

    strength: float
    terms: Sequence[tuple[Parameters, Parameters]]
    """Ω and θ*, by parameter."""

    def __call__(self, network: Network) -> Tensor:
        """Return the penalty, with its graph; 0 without one where there are no terms yet."""
        if not self.terms:
            return torch.zeros(())
        learned = network.learned()
        parts = [quadratic_penalty(learned, anchor, importance) for importance, anchor in self.terms]
        return self.strength * torch.stack(parts).sum()


def surprise(logits: Tensor, mask: Tensor) -> Tensor:
    """Return -log p(ŷ|x) [...] for the most probable ŷ of those outputs of `logits` [..., O] that compete."""
    return -competing(logits, mask).log_softmax(-1).max(-1).values


class NotOnceError(ValueError):
    """A layer was called twice for an image, or with something else than one row."""


@contextmanager
def probing(
    probes: Mapping[str, Probe], shifts: Mapping[str, Parts], seen: dict[str, Parts]
) -> Iterator[None]:
    """Let layers run with `shifts` added inside, and put into `seen` what they have seen, by the layer's name.

    Raises
    ------
    NotOnceError
        A layer was called in a way that its probe does not know.
    """

    def replaced(name: str, probe: Probe) -> Callable[..., Tensor]:
        def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
            if name in seen or kwargs or len(args) != 1 or args[0].numel() != args[0].shape[-1]:
                raise NotOnceError(name)
            y, seen[name] = probe.forward(args[0].reshape(1, -1), shifts[name])
            return y.view((*args[0].shape[:-1], y.shape[-1]))

        return forward

    layers = {name: probe.layer for name, probe in probes.items()}
    before = {name: layer.__dict__.get("forward") for name, layer in layers.items()}
    try:
        for name, probe in probes.items():
            layers[name].forward = replaced(name, probe)
        yield
    finally:
        for name, layer in layers.items():
            layer.__dict__.pop("forward", None)
            if (own := before[name]) is not None:
                layer.forward = own


def image_gradients(
    network: Network,
    probes: Mapping[str, Probe],
    others: Iterable[str],
    observation: Tensor,
    masks: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor] = surprise,
) -> tuple[Parameters, dict[str, Parts], dict[str, Parts]]:
    """Return the gradients of each image's loss, for images [B, ...] and their masks [B, O].

    Of the parameters named in `others`, [B, ...] each; and for each of the `probes` (by the layer's name) of its shifts,
    and what it has seen: that is what gradients of the layer's own parameters are made of, and not to build these saves
    most of the work.
    """
    learned = {name: p.detach() for name, p in network.learned().items()}

    def loss(
        parameters: Parameters, shifts: dict[str, Parts], observation: Tensor, mask: Tensor
    ) -> tuple[Tensor, dict[str, Parts]]:
        seen: dict[str, Parts] = {}
        with probing(probes, shifts, seen):
            logits = functional_call(network, {**learned, **parameters}, (observation[None],))[0]
        return loss_of(logits, mask), seen

    parameters = {name: learned[name] for name in others}
    shifts = {name: probe.shifts() for name, probe in probes.items()}
    each = vmap(grad(loss, argnums=(0, 1), has_aux=True), in_dims=(None, None, 0, 0))
    with warnings.catch_warnings():
        # where an operation has no batched form it is done image by image: slower, and as right
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        (of_parameters, of_shifts), seen = each(parameters, shifts, observation, masks)
    return of_parameters, of_shifts, seen


def weighted_sum(logits: Tensor, mask: Tensor) -> Tensor:
    """Return a sum of all outputs [O], in place of a loss: its gradient is no smaller where a network is sure."""
    return logits @ torch.linspace(1, 2, len(logits), dtype=logits.dtype, device=logits.device)


class Reached(NamedTuple):
    """What a loss depends on."""

    probes: dict[str, Probe]
    """Of the layers whose gradients they give, by name."""
    others: list[str]
    """The parameters that are left, without those that nothing depends on."""


def reached(network: Network, observation: Tensor) -> Reached:
    """Return what the outputs for images [B, ...] depend on; each probe is tried on them.

    Left out are probes of layers that are called twice or not at all, or whose parameters are frozen or used without a call;
    and any whose sums of squares are not those of the gradients that the network has without probes.
    """
    learned, masks = network.learned(), torch.ones(len(observation), dtype=torch.bool)
    plain = torch.autograd.grad(network(observation).sum(), list(learned.values()), allow_unused=True)
    names = [name for name, gradient in zip(learned, plain, strict=True) if gradient is not None]
    gradients, _, _ = image_gradients(network, {}, names, observation, masks, weighted_sum)
    expected = {name: gradient.square().sum(0) for name, gradient in gradients.items()}

    def agrees(candidates: Mapping[str, Probe]) -> bool:
        try:
            _, of_shifts, seen = image_gradients(network, candidates, (), observation, masks, weighted_sum)
        except NotOnceError:
            return False
        if seen.keys() != candidates.keys():
            return False
        pairs = [
            (expected[f"{name}.{part}"], value)
            for name, probe in candidates.items()
            for part, value in probe.squares(of_shifts[name], seen[name]).items()
        ]
        return all(
            torch.allclose(value, right, rtol=1e-3, atol=1e-4 * float(right.max())) for right, value in pairs
        )

    found: dict[str, Probe] = {}
    taken: set[str] = set()
    for name, probe in probes_of(network):
        own = {f"{name}.{part}" for part in probe.parameters}
        if own <= expected.keys() and not taken & own and agrees({name: probe}):
            found[name] = probe
            taken |= own
    if not agrees(found):  # one inside another
        found, taken = {}, set()
    return Reached(found, [name for name in names if name not in taken])


def fisher_diagonal(
    network: Network, data: Iterable[Samples], masks_NO: Tensor, *, limit: int = 0, chunk: int | None = None
) -> Parameters:
    """Kirkpatrick et al. 2017, eq. 3. Return F_i = mean over images of (∂ log p(ŷ|x) / ∂θ_i)².

    ŷ is the network's own answer, the most probable one, as in Hsu et al.'s code. Of `data`, the first `limit` images
    (0: all), `chunk` at a time (None: as many as ``CHUNK`` and ``COPIED`` allow); how the sums come about is said in
    ``agents.probes``.
    """
    network.eval()
    total = {name: torch.zeros_like(p) for name, p in network.learned().items()}
    parts: Reached | None = None
    n = 0
    for samples in data:
        left = limit - n if limit else len(samples.target)
        if left <= 0:
            break
        if parts is None:
            parts = reached(network, samples.observation[:4])
            if chunk is None:
                copied = sum(total[name].numel() for name in parts.others)
                chunk = max(1, min(CHUNK, COPIED // max(1, copied)))
        observations, tasks = samples.observation[:left], samples.task[:left]
        for observation, task in zip(observations.split(chunk), tasks.split(chunk), strict=True):
            gradients, of_shifts, seen = image_gradients(
                network, parts.probes, parts.others, observation, masks_NO[task]
            )
            for name, gradient in gradients.items():
                total[name] += gradient.square().sum(0)
            for name, probe in parts.probes.items():
                for part, value in probe.squares(of_shifts[name], seen[name]).items():
                    total[f"{name}.{part}"] += value
            n += len(observation)
    return {name: value / max(1, n) for name, value in total.items()}


def output_sensitivity(network: Network, data: Iterable[Samples], masks_NO: Tensor) -> Parameters:
    """Aljundi et al. 2018, eqs. 2-3. Return Ω_i = mean over batches of |∂ (mean squared output) / ∂θ_i|.

    The mean is over a batch's images and its competing outputs. As in Hsu et al.'s code the absolute value is taken batch by
    batch, where the paper takes it image by image.
    """
    network.eval()
    parameters = network.learned()
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    n = 0
    for samples in data:
        mask = masks_NO[samples.task]
        outputs = network(samples.observation)
        squared = outputs.square().masked_fill(~mask, 0).sum() / mask.sum()
        gradients = torch.autograd.grad(squared, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.abs()
        n += 1
    return {name: value / max(1, n) for name, value in total.items()}


def path_integral(path: Tensor, gradient: Tensor, change: Tensor) -> Tensor:
    """Zenke et al. 2017, eq. 3. Return ω after a step: what each parameter's change has taken off the task's loss."""
    return path - gradient * change


def path_importance(path: Tensor, change: Tensor, damping: float) -> Tensor:
    """Zenke et al. 2017, eq. 5. Return ω / (Δ² + ξ), Δ the `change` over the whole task; not cut off at 0."""
    return path / (change.square() + damping)
