"""The autoencoders of the bundled models: the TAESD format, trained on crops of the pictures."""

import functools
import json

import torch
import torch.nn.functional as F

from . import shapes
from .demo_nets import autoencoder
from .training import CACHE, MODELS, as_kernels, as_matrices, autocast, half, load, save, scenes_for, train, workers

AUTOENCODERS = {  # channels: file, and core's latent format (latents in its files are x / scale + shift)
    16: (MODELS / "shapes-vae16.safetensors", 0.3611, 0.1159),  # Flux
    4: (MODELS / "shapes-vae4.safetensors", 0.18215, 0.0),  # SD1
}


def crops(pictures, scenes, rng, side=48):
    """A crop around an object of each picture, on the latent grid: from flat background there is little to learn."""
    corners = []
    for scene in scenes:
        place = shapes.POSITIONS[rng.choice(scene.items).position]
        wanted = (pictures.shape[-1] * c - side / 2 + rng.uniform(-16, 16) for c in place)
        corners.append([8 * round(min(max(c, 0), pictures.shape[-1] - side) / 8) for c in wanted])
    return torch.stack([p[:, y : y + side, x : x + side] for p, (x, y) in zip(pictures, corners)])


def vae_loss(vae, norm, batch, device, step):
    """L1 + L2 of the decoded picture and L1 of its slopes, from latents of unit variance per channel, with noise, at two scales.

    The slopes (arXiv:1511.05440) keep edges sharp. The noise makes the latents smooth; the second scale (EQ-VAE,
    arXiv:2502.09509) makes them shrink as pictures do.
    """
    torch.manual_seed(step)
    scenes, rng = scenes_for("vae", step, batch)
    target = crops(shapes.draw(scenes, device=device), scenes, rng).contiguous(memory_format=torch.channels_last)
    with autocast(device):
        latents = norm(vae.taesd_encoder(target).float())
        if rng.random() < 0.25:
            latents, target = F.avg_pool2d(latents, 2), F.avg_pool2d(target, 2)
        noise = torch.randn_like(latents) * (0.1 * torch.rand(batch, 1, 1, 1, device=device))
        error = vae.taesd_decoder(latents + noise).float() - target
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + slopes


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


def train_vae(channels, device, steps, batch, warm):
    torch.manual_seed(0)
    file, scale, shift = AUTOENCODERS[channels]
    vae = autoencoder(channels).to(device)
    if warm:
        vae.load_state_dict({k: v.float() for k, v in load(file)[0].items()})
    vae = vae.to(memory_format=torch.channels_last)
    norm = torch.nn.BatchNorm2d(channels, affine=False, momentum=0.02).to(device)
    networks = torch.nn.ModuleList([vae.taesd_encoder, vae.taesd_decoder])
    as_matrices(networks)
    loss, folder = functools.partial(vae_loss, vae, norm, batch, device), CACHE / f"vae{channels}"
    seconds = train(networks, loss, steps, folder, peak=2e-3, muon=True)
    as_kernels(networks)
    if workers()[0] > 0:
        return
    measure_statistics(vae, norm, device)
    fold(norm, vae.taesd_encoder[-1])
    quality = psnr(vae, device)
    weights = half(vae) | {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
    batch *= workers()[1]
    card = {"steps": steps, "batch": batch, "seconds": round(seconds), "device": device, "psnr_db": round(quality, 2)}
    save(file, weights, {"training": json.dumps(card)})
    print(card)


@torch.no_grad()
def measure_statistics(vae, norm, device):
    """Mean and variance of each latent channel over whole pictures, with the averaged weights."""
    norm.reset_running_stats()
    norm.momentum = None  # a plain mean over the batches
    norm.train()
    for step in range(16):
        norm(vae.taesd_encoder(shapes.draw(scenes_for("vae statistics", step, 16)[0], device=device)))
