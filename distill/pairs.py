"""Pairs of a noise and where the teacher takes it, on disk: made once, and gone on with where they were left."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from .checkpoints import check_room, check_same, save_json, save_tensors
from .draws import generator
from .geometry import start
from .ode import solve


class Pairs:
    """A folder of clean latents, float16, each the end of a noise that is drawn again from its number.

    ``pairs[i]`` (C, ..., H, W) is the latent, ``pairs.noise(i)`` its noise, both float32 on the CPU; len counts those there are,
    without gaps from 0. shape: (C, ..., H, W). identity: {name: value} of all that the latents depend on: the model's fingerprint,
    prompts, steps, scale. ValueError where the folder holds pairs of another shape, seed or identity.
    """

    def __init__(self, folder, shape, seed, identity):
        self.folder, self.shape, self.seed = Path(folder), tuple(shape), seed
        self.folder.mkdir(parents=True, exist_ok=True)
        header, whole = self.folder / "pairs.json", {"shape": list(self.shape), "seed": seed, **identity}
        if header.exists():
            check_same(json.loads(header.read_text("utf-8")), whole, self.folder, "pairs")
        else:
            save_json(header, whole)
        self.files, self.places = {}, []  # path: open file; place of pair i: (path, row)
        self._find()

    def _find(self):
        found = {int(path.stem.split("-")[1]): path for path in self.folder.glob("pairs-*.safetensors")}
        while (path := found.get(len(self.places))) is not None:
            self._add(path)

    def _add(self, path):
        self.files[path] = safe_open(path, framework="pt", device="cpu")
        rows = self.files[path].get_slice("clean").get_shape()[0]
        self.places += [(path, row) for row in range(rows)]

    def __len__(self):
        return len(self.places)

    def __getitem__(self, i):
        path, row = self.places[i]
        return self.files[path].get_slice("clean")[row].float()

    def noise(self, i):
        """The noise of pair i, there or not yet, as it was when the pair was made: float32 on the CPU."""
        return torch.randn(self.shape, generator=generator(self.seed, "pair", item=i))

    def append(self, clean):
        """Write the next clean latents (B, C, ..., H, W), whole or not at all. OSError where that fails; those there stay."""
        clean = clean.to(torch.float16)
        if not clean.isfinite().all():
            raise ValueError("the teacher made latents that half precision cannot hold: check the model and its guidance.")
        check_room(self.folder, 2 * clean.nbytes + 2**20, "the next pairs")
        path = self.folder / f"pairs-{len(self):07d}.safetensors"
        save_tensors(path, {"clean": clean})
        self._add(path)


def fill(
    pairs, count, roles, cond, negative, levels, *, steps, scale, solver="ddim", batch=4, device="cpu", made=None, warned=None
):
    """Make pairs until there are ``count``, with the guided teacher in so many steps. Interrupted, those made so far stay.

    cond: one condition per pair, ``cond[indices]``; negative as in ``batch.Data``. made(number, count) is called after each batch,
    and warned(text) where memory runs out and fewer are made at once; neither that nor ``batch`` changes a pair, but for rounding.
    """
    sigmas = levels.grid(steps)
    while len(pairs) < count:
        indices = list(range(len(pairs), min(len(pairs) + batch, count)))
        clean = _ends(pairs, indices, roles, cond, negative, levels, sigmas, scale, solver, device)
        if clean is None:
            if batch == 1:
                raise torch.OutOfMemoryError("memory ran out while one latent was made: lower the resolution, or free memory.")
            batch = max(1, batch // 2)
            if warned is not None:
                warned(f"memory ran out: latents are now made {batch} at once.")
            continue
        pairs.append(clean)
        if made is not None:
            made(len(pairs), count)


def _ends(pairs, indices, roles, cond, negative, levels, sigmas, scale, solver, device):
    """Where the teacher takes the noises of these pairs, or None where memory runs out."""
    noise = torch.stack([pairs.noise(i) for i in indices]).to(device)
    conds, negatives = cond[indices], negative[[0] * len(indices)]
    each = sigmas.to(noise)[:, None].expand(-1, len(indices))
    try:
        with torch.no_grad():
            x = start(levels.path, noise, each[0])
            return solve(lambda x, sigma: roles.guided(x, sigma, conds, negatives, scale), x, each, solver)
    except torch.OutOfMemoryError:
        return None
