"""Which base model a LoRA was made for: cheap to take, the same on every machine, and told apart from a cast to another dtype.

A hash of all names and shapes says whether it is the same architecture. 32 weights of each of 16 matrices, as numbers to be
compared and not as a hash, say whether it is the same checkpoint: rounding to bfloat16 moves them by 0.2 %, another training by
more. Casts to fp8 move them by 3 %, which nothing tells from a short fine-tune: take fingerprints of the unquantised model.
"""

import hashlib
from math import sqrt

MATRICES, WEIGHTS = 16, 32
SAME = 0.01  # relative distance of the sampled weights, up to which the model is the same but for its dtype


def fingerprint(architecture, weights):
    """{"architecture", "layers", "weights"}, for JSON, of {name: tensor}, all weights of the network without any patch.

    architecture: its name. layers: SHA-256 of names and shapes. weights: {name: [float]}, evenly spaced in each of the floating
    tensors of two or more axes whose names have the lowest SHA-256. The same for any device, dtype and order.
    """
    layers = "\n".join(f"{name} {tuple(weights[name].shape)}" for name in sorted(weights))
    matrices = [name for name, weight in weights.items() if weight.ndim >= 2 and weight.is_floating_point()]
    chosen = sorted(matrices, key=_hash)[:MATRICES]
    sampled = {name: [_rounded(value) for value in _spread(weights[name])] for name in sorted(chosen)}
    return {"architecture": architecture, "layers": _hash(layers), "weights": sampled}


def distance(recorded, present):
    """Root mean square over the matrices of the relative distance of their sampled weights. 0: equal; 1: nothing in common."""
    squares = []
    for name, old in recorded["weights"].items():
        norm = sum(value**2 for value in old)
        change = sum((value - other) ** 2 for value, other in zip(old, present["weights"][name], strict=True))
        squares.append(change / norm if norm else float(change > 0))
    return sqrt(sum(squares) / len(squares)) if squares else 0.0


def difference(recorded, present):
    """What differs between two fingerprints, a phrase for a message, or None: same architecture, weights within 1 %."""
    if recorded["architecture"] != present["architecture"]:
        return f"its architecture is {present['architecture']}, not {recorded['architecture']}"
    if recorded["layers"] != present["layers"] or recorded["weights"].keys() != present["weights"].keys():
        return "its layers have other names or shapes"
    moved = distance(recorded, present)
    return f"its weights differ by {moved:.1%}" if moved > SAME else None


def _hash(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _spread(weight):
    flat = weight.detach().flatten()
    step = max(1, len(flat) // WEIGHTS - 1) | 1  # odd: an even one would stay in one column of most matrices
    return flat[::step][:WEIGHTS].float().tolist()


def _rounded(value):
    return float(f"{value:.6g}")
