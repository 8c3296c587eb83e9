"""How much each parameter matters to what has been learned: the equations of continual learning's penalties.

Shape suffixes: B batch, O outputs, N tasks.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from neurocoder.policies import Policy
from neurocoder.policies.heads import MoEHead, NSMHead

Parameters = dict[str, Tensor]
"""Tensors by the name of the parameter that they belong to."""
CHUNK = 64
"""Images whose gradients are there at once: as many copies of all parameters outside linear layers and their mixtures."""
Layer = nn.Linear | NSMHead | MoEHead
"""y = Σ_p w_p (x W_p + b_p), or x W + b: of each image, a weight's gradient is an outer product."""


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


def own_parameters(name: str, layer: Layer) -> list[str]:
    """Return the names of the parameters of `layer`, called `name`, whose gradients are outer products."""
    return [f"{name}.weight"] + ([] if layer.bias is None else [f"{name}.bias"])


def image_gradients(
    network: Network,
    layers: Mapping[str, Layer],
    others: Iterable[str],
    observation: Tensor,
    masks: Tensor,
) -> tuple[Parameters, Parameters, Parameters]:
    """Return the gradients of each image's :func:`surprise`, for images [B, ...] and their masks [B, O].

    Of the parameters named in `others`, [B, ...] each; of what `layers` (by name) put out, [B, out]; and what goes into
    these layers, [B, in], with the weights of a mixture's parts behind it, [B, in + P]. Of a layer that sees one row per
    image, and once, the weight's gradient is the outer product of the latter two: not to build it saves most of the work.
    """
    learned = {name: p.detach() for name, p in network.learned().items()}

    looking = False  # at a mixture's weights, which calls its layers once more

    def loss(
        parameters: Parameters, shifts: Parameters, observation: Tensor, mask: Tensor
    ) -> tuple[Tensor, Parameters]:
        seen: Parameters = {}

        def shifted(name: str) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                nonlocal looking
                if looking:
                    return output
                if name in seen or args[0].numel() != args[0].shape[-1]:
                    raise ValueError(name)
                seen[name] = args[0].flatten()
                if isinstance(module, NSMHead | MoEHead):
                    looking = True
                    weights = module.attention(args[0]).flatten()
                    looking = False
                    seen[name] = torch.cat((seen[name], weights))
                return output + shifts[name]

            return hook

        handles = [layer.register_forward_hook(shifted(name)) for name, layer in layers.items()]
        try:
            logits = functional_call(network, {**learned, **parameters}, (observation[None],))[0]
        finally:
            for handle in handles:
                handle.remove()
        return surprise(logits, mask), seen

    parameters = {name: learned[name] for name in others}
    shifts = {name: layer.weight.new_zeros(layer.out_features) for name, layer in layers.items()}
    each = vmap(grad(loss, argnums=(0, 1), has_aux=True), in_dims=(None, None, 0, 0))
    with warnings.catch_warnings():
        # where an operation has no batched form it is done image by image: slower, and as right
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        (of_parameters, of_outputs), inputs = each(parameters, shifts, observation, masks)
    return of_parameters, of_outputs, inputs


def sum_of_outer_products(layer: Layer, outputs: Tensor, inputs: Tensor) -> list[Tensor]:
    """Return Σ_b of the outer products of `inputs` and `outputs`, as :func:`image_gradients` has them, by parameter.

    With both squared it is the sum of squared gradients: (g xᵀ)² = g² (x²)ᵀ.
    """
    if isinstance(layer, nn.Linear):
        found = [outputs.t() @ inputs]
        return found if layer.bias is None else [*found, outputs.sum(0)]
    inputs_BI, weights_BP = inputs.split((layer.in_features, inputs.shape[1] - layer.in_features), dim=1)
    parts = [(inputs_BI * weights_B.unsqueeze(1)).t() @ outputs for weights_B in weights_BP.t()]
    return [torch.stack(parts), weights_BP.t() @ outputs]


def outer_product_layers(network: Network, observation: Tensor, masks: Tensor) -> dict[str, Layer]:
    """Return those layers whose gradients :func:`image_gradients` can give as outer products, tried on images."""
    learned = network.learned()
    found: dict[str, Layer] = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, Layer) or not set(own := own_parameters(name, layer)) <= learned.keys():
            continue
        try:
            plain, outputs, inputs = image_gradients(network, {name: layer}, own, observation, masks)
        except (ValueError, RuntimeError):  # called twice, or not with one row per image
            continue
        if name not in inputs:  # its weights are used without a call of it
            continue
        sums = sum_of_outer_products(layer, outputs[name].square(), inputs[name].square())
        if all(
            torch.allclose(plain[part].square().sum(0), value, rtol=1e-3, atol=1e-10)
            for part, value in zip(own, sums, strict=True)
        ):
            found[name] = layer
    return found


def fisher_diagonal(
    network: Network, data: Iterable[Samples], masks_NO: Tensor, *, limit: int = 0, chunk: int = CHUNK
) -> Parameters:
    """Kirkpatrick et al. 2017, eq. 3. Return F_i = mean over images of (∂ log p(ŷ|x) / ∂θ_i)².

    ŷ is the network's own answer, the most probable one, as in Hsu et al.'s code. Of `data`, the first `limit` images
    (0: all), `chunk` at a time. Where an image's gradient is an outer product g xᵀ, the sum over images of its square is
    (G²)ᵀ X².
    """
    network.eval()
    total = {name: torch.zeros_like(p) for name, p in network.learned().items()}
    layers: dict[str, Layer] | None = None
    n = 0
    for samples in data:
        left = limit - n if limit else len(samples.target)
        if left <= 0:
            break
        for observation, task in zip(
            samples.observation[:left].split(chunk), samples.task[:left].split(chunk), strict=True
        ):
            masks = masks_NO[task]
            if layers is None:
                layers = outer_product_layers(network, observation[:4], masks[:4])
                own = {name: own_parameters(name, layer) for name, layer in layers.items()}
                others = sorted(total.keys() - {part for parts in own.values() for part in parts})
            gradients, outputs, inputs = image_gradients(network, layers, others, observation, masks)
            for name, gradient in gradients.items():
                total[name] += gradient.square().sum(0)
            for name, layer in layers.items():
                sums = sum_of_outer_products(layer, outputs[name].square(), inputs[name].square())
                for part, value in zip(own[name], sums, strict=True):
                    total[part] += value
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
