"""A slow reading of the Neurocoder paper: float64 loops over samples, steps, heads, slots and components."""

import math

import numpy as np

from neurocoder.policies import NeurocoderLinear


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)))


def affine(layer, x: np.ndarray) -> np.ndarray:
    weight = layer.weight.detach().numpy()
    out = np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in weight])
    return out if layer.bias is None else out + layer.bias.detach().numpy()


def controller(layer: NeurocoderLinear, x: np.ndarray) -> list[np.ndarray]:
    """Eq. 9 with h₀ = c₀ = 0: an LSTM in the usual equations, its readout at every step."""
    net = layer.controller
    size = net.size
    hidden, cell = np.zeros(size), np.zeros(size)
    outputs = []
    for step in range(layer.attention_steps):
        pre = affine(net.input, x)
        if step:
            pre = pre + affine(net.recurrent, hidden)
        new_hidden, new_cell = np.zeros(size), np.zeros(size)
        for k in range(size):
            write, out, candidate = (
                sigmoid(pre[k]),
                sigmoid(pre[size + k]),
                math.tanh(pre[2 * size + k]),
            )
            kept = sigmoid(pre[3 * size + k]) * cell[k] if step else 0.0
            new_cell[k] = kept + write * candidate
            new_hidden[k] = out * math.tanh(new_cell[k])
        hidden, cell = new_hidden, new_cell
        outputs.append(affine(net.readout, hidden))
    return outputs


def attention(layer: NeurocoderLinear, x: np.ndarray) -> np.ndarray:
    """Eqs. 10-14 for one input: weights [3, J·H, P]."""
    n_heads, n_key, n_slots = layer.attention_heads, layer.key_size, layer.slots
    if layer.fixed_routing:
        keys = [[row[memory] for row in layer.slot_keys.numpy()] for memory in range(3)]
    else:
        keys = [
            [affine(layer.key_u, row) for row in layer.memory_u.detach().numpy()],
            [affine(layer.key_v, row) for row in layer.memory_v.detach().numpy()],
            list(layer.key_s.detach().numpy()),
        ]
    sharpness = layer.sharpness
    beta = [sharpness] * 3 if isinstance(sharpness, float) else sharpness.detach().flatten().tolist()
    weights = np.zeros((3, layer.attention_steps * n_heads, n_slots))
    outputs = controller(layer, x)
    for memory in range(3):
        for head in range(n_heads):
            usage = np.zeros(n_slots)
            for step, output in enumerate(outputs):
                rows = output.reshape(3, -1, n_heads)[memory, :, head]
                query, gate = rows[:n_key], sigmoid(rows[n_key]) if layer.gated else 1.0
                scores = [math.exp(beta[memory] * cosine(query, key)) for key in keys[memory]]
                content = np.array(scores) / sum(scores)
                least = np.zeros(n_slots)
                if step:
                    for slot in sorted(range(n_slots), key=lambda i: (usage[i], i))[: layer.least_used]:
                        least[slot] = max(usage) - usage[slot]
                if layer.convex:
                    least = content if not step else least / max(sum(least), 1e-12)
                row = gate * content + (1 - gate) * least
                usage = np.maximum(usage, row)
                weights[memory, step * n_heads + head] = row
    return weights


def working_program(layer: NeurocoderLinear, x: np.ndarray) -> np.ndarray:
    """Eqs. 1-8 and 15 for one input: W [in, out], built component by component."""
    w_u, w_v, w_s = attention(layer, x)
    memory_u, memory_v, memory_s = (
        m.detach().numpy() for m in (layer.memory_u, layer.memory_v, layer.memory_s)
    )
    n_components = len(w_u)
    sigma = np.zeros(n_components)
    running = 0.0
    for n in reversed(range(n_components)):
        score = sum(w * row[0] for w, row in zip(w_s[n], memory_s, strict=True))
        running += math.log1p(math.exp(score))
        sigma[n] = running
    program = np.zeros((layer.in_features, layer.out_features))
    for n in range(n_components):
        u, v = np.zeros(layer.in_features), np.zeros(layer.out_features)
        for slot in range(layer.slots):
            u += w_u[n, slot] * memory_u[slot]
            v += w_v[n, slot] * memory_v[slot]
        program += sigma[n] * np.outer(u, v)
    if layer.residual is not None:
        gate = sigmoid(affine(layer.residual_gate, x)[0])
        program += gate * sigma[-1] * layer.residual.detach().numpy()
    return program


def orthogonal_loss(memory: np.ndarray) -> float:
    """Eq. 5 for one memory, entry by entry."""
    total = 0.0
    for i, a in enumerate(memory):
        for j, b in enumerate(memory):
            total += (sum(x * y for x, y in zip(a, b, strict=True)) - (i == j)) ** 2
    return total / len(memory)
