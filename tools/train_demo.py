"""Trains the bundled models from scratch: ``python -m tools.host --run -m tools.train_demo [STAGE ...]``.

No data is downloaded: pictures are drawn as they are needed. Each stage shows its progress and can be stopped and
resumed at any time; its checkpoints lie in .cache/train, the finished model with its figures in models/. On a CPU one
thread in each of several processes does far more than several threads in one: see docs/models.md.
"""

import argparse
import functools
import hashlib
import json
import random

import torch
from tqdm import tqdm

from . import shapes
from .demo_nets import autoencoder, import_networks, text_encoder, transformer
from .server import end_on_sigterm
from .train_unet import train_unet
from .train_vae import AUTOENCODERS, train_decoder, train_vae
from .training import CACHE, MODELS, autocast, from_all_workers, half, join_workers, load, save, scenes_for, train, workers

STAGES = ["vae16", "decoder16", "vae4", "decoder4", "dit", "unet"]


def latent_pool(channels, device, count, batch=32):
    """``count`` scenes and their latents (count, channels, 16, 16), float16, encoded once for an autoencoder, kept on disk."""
    path, autoencoder_file = CACHE / f"pool{channels}.safetensors", AUTOENCODERS[channels][0]
    weights = {k: v.float() for k, v in load(autoencoder_file)[0].items()}
    encoder = b"".join(v.numpy().tobytes() for k, v in sorted(weights.items()) if k.startswith("taesd_encoder"))
    made_by = {"encoder": hashlib.sha256(encoder).hexdigest(), "sizes": str(shapes.SIZES)}
    scenes = [scene for step in range(count // batch) for scene in scenes_for("pool", step, batch)[0]]
    if path.exists():
        tensors, metadata = load(path)
        if len(tensors["latents"]) == len(scenes) and metadata == made_by:
            return scenes, tensors["latents"]
    vae = autoencoder(channels).to(device, memory_format=torch.channels_last)
    vae.load_state_dict(weights)
    worker, workers_count = workers()
    mine = []
    with torch.no_grad(), autocast(device):
        for i in tqdm(range(worker * batch, count, workers_count * batch), desc="encode", mininterval=5, disable=worker > 0):
            pictures = shapes.draw(scenes[i : i + batch], device=device).contiguous(memory_format=torch.channels_last)
            mine.append(vae.taesd_encoder(pictures).half().cpu())
    latents = from_all_workers(torch.stack(mine)).flatten(0, 1)
    if worker == 0:
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
    """``pool``: scenes and their latents."""
    scenes, latents = pool
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
    card = {"steps": steps, "batch": batch, "pictures": len(scenes), "seconds": round(seconds), "device": device}
    save(MODELS / "shapes-dit.safetensors", half(networks["dit"]), {"training": json.dumps(card)})
    text = half(networks["text"].transformer)
    save(MODELS / "shapes-text.safetensors", text, {"words": json.dumps(shapes.vocabulary()), "training": json.dumps(card)})
    print(card)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=STAGES, help="default: all, in this order")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--decoder-steps", type=int, default=3000)
    parser.add_argument("--dit-steps", type=int, default=8000)
    parser.add_argument("--unet-steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pool", type=int, default=20480, help="pictures encoded for the transformer")
    parser.add_argument("--warm", action="store_true", help="start from the committed weights")
    options = parser.parse_args()
    end_on_sigterm()
    join_workers()
    import_networks(options.device)

    def asked(stage):
        return stage in options.stages or not options.stages

    def pool(channels):
        return latent_pool(channels, options.device, options.pool)

    for channels in AUTOENCODERS:
        if asked(f"vae{channels}"):
            train_vae(channels, options.device, options.vae_steps, options.batch, options.warm)
        if asked(f"decoder{channels}"):
            train_decoder(channels, options.device, options.decoder_steps, options.batch, pool(channels))
    if asked("dit"):
        train_dit(options.device, options.dit_steps, options.batch, pool(16), options.warm)
    if asked("unet"):
        train_unet(options.device, options.unet_steps, options.batch, pool(4), options.warm)


if __name__ == "__main__":
    main()
