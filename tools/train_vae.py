"""The autoencoders of the bundled models: the TAESD format, trained on crops of the pictures."""

import functools
import json
import random

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
    """Error of the decoded picture, from latents of unit variance per channel, with noise, at two scales.

    The noise makes the latents smooth; the second scale (EQ-VAE, arXiv:2502.09509) makes them shrink as pictures do.
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
    return picture_error(error)


def decoder_loss(decoder, scenes, latents, batch, device, step, side=6):
    """As ``vae_loss``, for a decoder alone: from crops of whole pictures' latents, hardly noisy, so that faint light shows."""
    rng, generator = random.Random(f"decoder {step}"), torch.Generator().manual_seed(step)
    chosen = rng.sample(range(len(scenes)), batch)
    pictures = shapes.draw([scenes[i] for i in chosen], device=device)
    crop, wanted = [], []
    for i, picture in zip(chosen, pictures):
        x, y = shapes.POSITIONS[rng.choice(scenes[i].items).position]
        left, top = (round(min(max(16 * c - side / 2 + rng.uniform(-2, 2), 0), 16 - side)) for c in (x, y))
        crop.append(latents[i, :, top : top + side, left : left + side])
        wanted.append(picture[:, 8 * top : 8 * (top + side), 8 * left : 8 * (left + side)])
    crop, wanted = torch.stack(crop).float().to(device), torch.stack(wanted)
    noise = torch.randn(crop.shape, generator=generator).to(device) * 0.05 * torch.rand(batch, 1, 1, 1, generator=generator).to(device)
    with autocast(device):
        decoded = decoder((crop + noise).contiguous(memory_format=torch.channels_last))
    return picture_error(decoded.float() - wanted)


def picture_error(error):
    """L1 + L2 of pictures, and L1 of their slopes, which keeps edges sharp (arXiv:1511.05440)."""
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


def begin_with(vae, file):
    """Take over the tensors of a trained autoencoder; of one with other channels, those of the same shape."""
    own = vae.state_dict()
    vae.load_state_dict({k: v.float() for k, v in load(file)[0].items() if k in own and v.shape == own[k].shape}, strict=False)


def train_vae(channels, device, steps, batch, warm):
    torch.manual_seed(0)
    vae = autoencoder(channels).to(device)
    if warm or channels == 4:
        begin_with(vae, AUTOENCODERS[channels if warm else 16][0])
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
    write(vae, channels, {"steps": steps, "batch": batch * workers()[1], "seconds": round(seconds), "device": device})


def train_decoder(channels, device, steps, batch, pool):
    """Train the decoder on; latents stay what they are. ``pool``: scenes and their latents."""
    torch.manual_seed(0)
    tensors, metadata = load(AUTOENCODERS[channels][0])
    vae = autoencoder(channels).to(device)
    vae.load_state_dict({k: v.float() for k, v in tensors.items()})
    decoder = vae.taesd_decoder.to(memory_format=torch.channels_last)
    as_matrices(decoder)
    loss = functools.partial(decoder_loss, decoder, *pool, batch, device)
    seconds = train(decoder, loss, steps, CACHE / f"decoder{channels}", peak=2e-3, muon=True)
    as_kernels(decoder)
    if workers()[0] > 0:
        return
    alone = {"steps": steps, "batch": batch * workers()[1], "seconds": round(seconds), "device": device}
    write(vae, channels, json.loads(metadata["training"]) | {"decoder alone": alone})


def write(vae, channels, card):
    file, scale, shift = AUTOENCODERS[channels]
    card["psnr_db"] = round(psnr(vae, next(vae.parameters()).device), 2)
    weights = half(vae) | {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
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
