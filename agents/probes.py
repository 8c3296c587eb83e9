"""What the gradients of a layer's parameters are made of, image by image, without any of them being built.

Of a linear layer that sees one row x of each image, a weight's gradient is the outer product of x and of the gradient of
what the layer puts out. A probe runs a layer with *shifts*, zeros that are added inside it, and returns what it has *seen*;
from the gradients of the shifts and what was seen it has the sum over images of each parameter's squared gradient::

    Σ_b (g_b x_bᵀ)² = (G²)ᵀ X²

and of a memory M, which is also where keys k = M Wᵀ come from, one of rank 1 + K::

    Σ_b (g_b x_bᵀ + D_b W)² = (G²)ᵀ X² + 2 Σ_k ((G ∘ D_k)ᵀ X) ∘ W_k + Σ_kl (Σ_b D_bk ∘ D_bl) W_k ∘ W_l

Shape suffixes: B batch, I/O inputs and outputs, P programs or slots, K width of keys, D width of a memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.policies.heads import ComposedHead, MoEHead, NSMHead

Parts = dict[str, Tensor]
"""Tensors by what they are of: a shift, something seen, a parameter."""


class Probe(ABC):
    """A layer and what its gradients are made of. It must be called once for each image, with one row."""

    layer: nn.Module
    parameters: list[str]
    """Names of those of the layer's parameters that :meth:`squares` is about."""

    @abstractmethod
    def shifts(self) -> Parts:
        """Return the zeros that are added inside the layer."""

    @abstractmethod
    def forward(self, x_1I: Tensor, shifts: Parts) -> tuple[Tensor, Parts]:
        """Return what the layer puts out for one row, [1, O], and what was seen."""

    @abstractmethod
    def squares(self, gradients: Parts, seen: Parts) -> Parts:
        """Return Σ_b of the squared gradients of :attr:`parameters`; of images, the gradients of shifts and what was seen."""


class OfLinear(Probe):
    """y = W x + b."""

    layer: nn.Linear

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.parameters = ["weight"] if layer.bias is None else ["weight", "bias"]

    def shifts(self) -> Parts:
        return {"output": self.layer.weight.new_zeros(self.layer.out_features)}

    def forward(self, x_1I: Tensor, shifts: Parts) -> tuple[Tensor, Parts]:
        y_1O = F.linear(x_1I, self.layer.weight, self.layer.bias)
        return y_1O + shifts["output"], {"input": x_1I[0]}

    def squares(self, gradients: Parts, seen: Parts) -> Parts:
        output = gradients["output"].square()
        found = {"weight": output.t() @ seen["input"].square(), "bias": output.sum(0)}
        return {name: found[name] for name in self.parameters}


class OfMixture(Probe):
    """y = Σ_p w_p (x W_p + b_p)."""

    layer: NSMHead | MoEHead

    def __init__(self, layer: NSMHead | MoEHead) -> None:
        self.layer = layer
        self.parameters = ["weight", "bias"]

    def shifts(self) -> Parts:
        return {"output": self.layer.weight.new_zeros(self.layer.out_features)}

    def forward(self, x_1I: Tensor, shifts: Parts) -> tuple[Tensor, Parts]:
        y_1O, trace = self.layer.forward_with_trace(x_1I)
        return y_1O + shifts["output"], {"input": x_1I[0], "mixed": trace.attention.flatten()}

    def squares(self, gradients: Parts, seen: Parts) -> Parts:
        output, input_, mixed = (
            part.square() for part in (gradients["output"], seen["input"], seen["mixed"])
        )
        weight = torch.stack([(input_ * share.unsqueeze(1)).t() @ output for share in mixed.t()])
        return {"weight": weight, "bias": mixed.t() @ output}


class OfComposed(Probe):
    """A program memory's U and V, with the nets that make keys of them, and the residual program."""

    layer: ComposedHead

    def __init__(self, layer: ComposedHead) -> None:
        self.layer = layer
        self.parameters = ["memory_u", "memory_v"]
        self.has_nets = isinstance(getattr(layer, layer.key_nets[0]), nn.Linear)
        if self.has_nets:
            self.parameters += [f"{net}.{part}" for net in layer.key_nets for part in ("weight", "bias")]
        if layer.residual is not None:
            self.parameters.append("residual")

    def shifts(self) -> Parts:
        memory, layer = self.layer.memory_u, self.layer
        keys = memory.new_zeros(2, layer.slots, layer.key_size)
        return {
            "score": memory.new_zeros(layer.slots),
            "output": memory.new_zeros(layer.out_features),
        } | ({"key": keys} if self.has_nets else {})

    def forward(self, x_1I: Tensor, shifts: Parts) -> tuple[Tensor, Parts]:
        layer, keys = self.layer, self.layer.keys()
        if self.has_nets:
            keys = keys + torch.cat((shifts["key"], torch.zeros_like(keys[:1])))
        score_1P = x_1I @ layer.learned_rows(layer.memory_u).T + shifts["score"]
        y_1O, slots_1P, scale_1 = layer.put_out(x_1I, layer.compose(x_1I, keys), score_1P)
        return y_1O + shifts["output"], {"input": x_1I[0], "slots": slots_1P[0], "scale": scale_1}

    def squares(self, gradients: Parts, seen: Parts) -> Parts:
        layer, of_output = self.layer, gradients["output"]
        found: Parts = {}
        factors = {"memory_u": (gradients["score"], seen["input"]), "memory_v": (seen["slots"], of_output)}
        for number, (name, (left_BP, right_BD)) in enumerate(factors.items()):
            total = left_BP.square().t() @ right_BD.square()
            if self.has_nets:
                net, of_key_BPK = layer.key_nets[number], gradients["key"][:, number]
                weight_KD = getattr(layer, net).weight.detach()
                of_weight = of_key_BPK.transpose(1, 2) @ getattr(layer, name).detach()
                found[f"{net}.weight"] = of_weight.square().sum(0)
                found[f"{net}.bias"] = of_key_BPK.sum(1).square().sum(0)
                for of_key_BP, weight_D in zip(of_key_BPK.unbind(-1), weight_KD, strict=True):
                    total += 2 * ((left_BP * of_key_BP).t() @ right_BD) * weight_D
                products = torch.einsum("bpk,bpl->pkl", of_key_BPK, of_key_BPK).flatten(1)
                total += products @ (weight_KD.unsqueeze(1) * weight_KD).flatten(0, 1)
            total[: layer.frozen_slots] = 0
            found[name] = total.clamp_min_(0)  # what cancels, cancels up to rounding
        if layer.residual is not None:
            found["residual"] = (seen["scale"] * seen["input"]).square().t() @ of_output.square()
        return found


def probes_of(module: nn.Module) -> Iterator[tuple[str, Probe]]:
    """Yield the probes of all layers in `module` that have one, by name; a layer comes before those inside it."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            yield name, OfLinear(layer)
        elif isinstance(layer, NSMHead | MoEHead):
            yield name, OfMixture(layer)
        elif isinstance(layer, ComposedHead):
            yield name, OfComposed(layer)
