"""Trains the bundled models from scratch: ``python -m tools.host --run -m tools.train_demo [vae] [dit]``.

No data is downloaded: pictures are drawn as they are needed. Each stage shows its progress and can be stopped and
resumed at any time; its checkpoints lie in .cache/train, the finished model with its figures in models/. On a CPU one
thread in each of several processes does far more than several threads in one: see models/README.md.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from . import ROOT, shapes
from .demo_nets import autoencoder, import_networks, text_encoder, transformer
from .server import end_on_sigterm
from .training import load, save, train, workers

CACHE = ROOT / ".cache" / "train"
MODELS = ROOT / "models"
FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159  # core's Flux latent format: latents in its files are x / scale + shift


def scenes_for(purpose, step, count):
    """The same scenes for the same (purpose, step), whatever ran before."""
    rng = random.Random(f"{purpose} {step}")
    return [shapes.random_scene(rng) for _ in range(count)], rng


def autocast(device):
    return torch.autocast(device, torch.bfloat16)


def half(network):
    return {k: v.half() for k, v in network.state_dict().items()}


# Autoencoder


def crops(pictures, scenes, rng, side=64):
    """A crop around an object of each picture, on the latent grid: from flat background there is little to learn."""
    corners = []
    for scene in scenes:
        place = shapes.POSITIONS[rng.choice(scene.items).position]
        wanted = (pictures.shape[-1] * c - side / 2 + rng.uniform(-16, 16) for c in place)
        corners.append([8 * round(min(max(c, 0), pictures.shape[-1] - side) / 8) for c in wanted])
    return torch.stack([p[:, y : y + side, x : x + side] for p, (x, y) in zip(pictures, corners)])


def vae_loss(vae, norm, batch, device, step):
    """L1 + L2 of the decoded picture, from latents of unit variance per channel, with noise, at two scales.

    The noise makes the latents smooth; the second scale (EQ-VAE, arXiv:2502.09509) makes them shrink as pictures do.
    """
    torch.manual_seed(step)
    scenes, rng = scenes_for("vae", step, batch)
    target = crops(shapes.draw(scenes, device=device), scenes, rng).contiguous(memory_format=torch.channels_last)
    with autocast(device):
        latents = norm(vae.taesd_encoder(target).float())
        if step % 4 == 0:
            latents, target = F.avg_pool2d(latents, 2), F.avg_pool2d(target, 2)
        noise = torch.randn_like(latents) * (0.2 * torch.rand(batch, 1, 1, 1, device=device))
        error = vae.taesd_decoder(latents + noise).float() - target
    return error.abs().mean() + error.square().mean()


def fold(norm, convolution):
    """Write the channel statistics that training measured into the encoder's last layer."""
    scale = (norm.running_var + norm.eps).rsqrt()
    with torch.no_grad():
        convolution.bias.sub_(norm.running_mean).mul_(scale)
        convolution.weight.mul_(scale[:, None, None, None])


@torch.no_grad()
def psnr(vae, device, count=256):
    """Mean PSNR in dB of fresh pictures after encoding and decoding."""
    values = []
    for step in range(count // 16):
        pictures = shapes.draw(scenes_for("vae test", step, 16)[0], device=device)
        decoded = vae.taesd_decoder(vae.taesd_encoder(pictures)).clamp(0, 1)
        values.append(-10 * (decoded - pictures).square().mean((1, 2, 3)).log10())
    return torch.cat(values).mean().item()


def train_vae(device, steps, batch):
    torch.manual_seed(0)
    vae = autoencoder().to(device, memory_format=torch.channels_last)
    norm = torch.nn.BatchNorm2d(16, affine=False, momentum=0.02).to(device)
    networks = torch.nn.ModuleList([vae.taesd_encoder, vae.taesd_decoder])
    seconds = train(networks, functools.partial(vae_loss, vae, norm, batch, device), steps, CACHE / "vae", peak=2e-3)
    measure_statistics(vae, norm, device)
    fold(norm, vae.taesd_encoder[-1])
    quality = psnr(vae, device)
    weights = half(vae) | {"vae_scale": torch.tensor(FLUX_SCALE), "vae_shift": torch.tensor(FLUX_SHIFT)}
    card = {"steps": steps, "batch": batch, "seconds": round(seconds), "device": device, "psnr_db": round(quality, 2)}
    save(MODELS / "shapes-vae16.safetensors", weights, {"training": json.dumps(card)})
    print(card)


@torch.no_grad()
def measure_statistics(vae, norm, device):
    """Mean and variance of each latent channel over whole pictures, with the averaged weights."""
    norm.reset_running_stats()
    norm.momentum = None  # a plain mean over the batches
    norm.train()
    for step in range(16):
        norm(vae.taesd_encoder(shapes.draw(scenes_for("vae statistics", step, 16)[0], device=device)))


# Transformer


@contextlib.contextmanager
def first_worker_first():
    """The first worker runs the block alone, so that the others find what it has left on disk."""
    worker, count = workers()
    if worker > 0:
        dist.barrier()
    yield
    if worker == 0 and count > 1:
        dist.barrier()


def latent_pool(device, count, batch=32):
    """``count`` scenes and their latents (count, 16, 16, 16) in float16, encoded once for an autoencoder and kept on disk."""
    path, autoencoder_file = CACHE / "dit" / "pool.safetensors", MODELS / "shapes-vae16.safetensors"
    made_by = {"autoencoder": hashlib.sha256(autoencoder_file.read_bytes()).hexdigest()}
    scenes = [scene for step in range(count // batch) for scene in scenes_for("pool", step, batch)[0]]
    if path.exists():
        tensors, metadata = load(path)
        if len(tensors["latents"]) == len(scenes) and metadata == made_by:
            return scenes, tensors["latents"]
    vae = autoencoder().to(device, memory_format=torch.channels_last)
    vae.load_state_dict({k: v.float() for k, v in load(autoencoder_file)[0].items()})
    latents = []
    with torch.no_grad(), autocast(device):
        for i in tqdm(range(0, count, batch), desc="encode", mininterval=5):
            pictures = shapes.draw(scenes[i : i + batch], device=device).contiguous(memory_format=torch.channels_last)
            latents.append(vae.taesd_encoder(pictures).half().cpu())
    latents = torch.cat(latents)
    save(path, {"latents": latents}, made_by)
    return scenes, latents


def dit_loss(networks, tokenize, scenes, latents, batch, device, step):
    """Rectified flow: velocity (noise minus data) at logit-normal times (arXiv:2403.03206), a tenth without caption.

    The times lean towards noise: a shape shows through all 16 channels, so only above sigma 0.9 must words place it.
    """
    rng, generator = random.Random(f"dit {step}"), torch.Generator().manual_seed(step)
    chosen = torch.randint(0, len(scenes), (batch,), generator=generator)
    captions = ["" if rng.random() < 0.1 else shapes.caption(scenes[i], rng) for i in chosen]
    x0 = latents[chosen].float().to(device)
    noise = torch.randn(x0.shape, generator=generator).to(device)
    sigma = (1.5 + 1.5 * torch.randn(batch, generator=generator)).sigmoid().to(device)
    x = torch.lerp(x0, noise, sigma[:, None, None, None])
    with autocast(device):
        context, pooled = networks["text"]([tokenize(caption) for caption in captions])
        velocity = networks["dit"](x, sigma, context, pooled)
    return (velocity.float() - (noise - x0)).square().mean()


def train_dit(device, steps, batch, pool, warm):
    with first_worker_first():
        scenes, latents = latent_pool(device, pool)
    torch.manual_seed(0)
    encoder, tokenize = text_encoder()
    networks = torch.nn.ModuleDict({"dit": transformer(), "text": encoder}).to(device)
    if warm:
        networks["dit"].load_state_dict(load(MODELS / "shapes-dit.safetensors")[0])
        networks["text"].transformer.load_state_dict(load(MODELS / "shapes-text.safetensors")[0])
    loss = functools.partial(dit_loss, networks, tokenize, scenes, latents, batch, device)
    seconds = train(networks, loss, steps, CACHE / "dit", peak=4e-3, muon=True)
    if workers()[0] > 0:
        return
    batch *= workers()[1]
    card = {"steps": steps, "batch": batch, "pictures": pool, "seconds": round(seconds), "device": device}
    save(MODELS / "shapes-dit.safetensors", half(networks["dit"]), {"training": json.dumps(card)})
    text = half(networks["text"].transformer)
    save(MODELS / "shapes-text.safetensors", text, {"words": json.dumps(shapes.vocabulary()), "training": json.dumps(card)})
    print(card)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=["vae", "dit"], help="default: all, in this order")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--dit-steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pool", type=int, default=20480, help="pictures encoded for the transformer")
    parser.add_argument("--warm", action="store_true", help="start the transformer from the committed weights")
    options = parser.parse_args()
    end_on_sigterm()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo", timeout=timedelta(hours=1))
    import_networks(options.device)
    if "vae" in options.stages or not options.stages:
        train_vae(options.device, options.vae_steps, options.batch)
    if "dit" in options.stages or not options.stages:
        train_dit(options.device, options.dit_steps, options.batch, options.pool, options.warm)


if __name__ == "__main__":
    main()
