"""The UNet of the bundled models: an SD1-class eps-prediction network on 4-channel latents."""

import functools
import json
import random

import torch

from . import shapes
from .demo_nets import text_encoder, unet
from .training import CACHE, MODELS, autocast, half, load, save, train, workers

FILE = MODELS / "shapes-unet.safetensors"
STEPS, FIRST_BETA, LAST_BETA = 1000, 0.00085, 0.012  # core's SD1 class expects these


def noise_levels():
    """Stable Diffusion's cumulative product of alphas, (1000,): betas even in their square roots."""
    betas = torch.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def unet_loss(network, encoder, tokenize, scenes, latents, batch, device, step):
    """Min-SNR weighted error of eps (arXiv:2303.09556, gamma 5) at even timesteps, a tenth without caption."""
    rng, generator = random.Random(f"unet {step}"), torch.Generator().manual_seed(step)
    chosen = torch.randint(0, len(scenes), (batch,), generator=generator)
    captions = ["" if rng.random() < 0.1 else shapes.caption(scenes[i], rng) for i in chosen]
    x0 = latents[chosen].float().to(device)
    eps = torch.randn(x0.shape, generator=generator).to(device)
    timestep = torch.randint(0, STEPS, (batch,), generator=generator)
    level = noise_levels()[timestep].to(device)
    signal, noise = level.sqrt()[:, None, None, None], (1 - level).sqrt()[:, None, None, None]
    with autocast(device):
        with torch.no_grad():
            context, _ = encoder([tokenize(caption) for caption in captions])
        predicted = network(signal * x0 + noise * eps, timestep.float().to(device), context)
    snr = level / (1 - level)
    return ((predicted.float() - eps).square().mean((1, 2, 3)) * snr.clamp(max=5) / snr).mean()


def train_unet(device, steps, batch, pool, warm):
    """``pool``: scenes and their latents. The text encoder is the transformer's, as it is."""
    scenes, latents = pool
    torch.manual_seed(0)
    encoder, tokenize = text_encoder()
    encoder.transformer.load_state_dict(load(MODELS / "shapes-text.safetensors")[0])
    encoder.requires_grad_(False).to(device)
    network = unet().to(device)
    if warm:
        network.load_state_dict(load(FILE)[0])
    loss = functools.partial(unet_loss, network, encoder, tokenize, scenes, latents, batch, device)
    seconds = train(network, loss, steps, CACHE / "unet", peak=2e-3, muon=True)
    if workers()[0] > 0:
        return
    batch *= workers()[1]
    card = {"steps": steps, "batch": batch, "pictures": len(scenes), "seconds": round(seconds), "device": device}
    save(FILE, half(network), {"training": json.dumps(card)})
    print(card)
