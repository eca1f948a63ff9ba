"""Discriminator guidance: a small network learns where generated latents differ from real ones, and its slope corrects them.

Kim et al. 2022, arXiv:2211.17091. With q_t the density of real latents at a noise level and p_t that of the model's, the best
discriminator has logit log(q_t / p_t), and its gradient is what the model's score lacks.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import silu, softplus

from ..core import append_dims

WIDTH, DEEP, EMBEDDING = 48, 96, 64  # channels before and after halving the size, and of the noise level's embedding
FREQUENCIES = torch.pi * torch.logspace(-4, 0.5, 16, base=2)  # of log(alpha / sigma): periods from 1.4 to 32
LEARNING_RATE = 1e-3
HELD_OUT = 0.2  # share of the latents kept for judging
LEAST = 4  # latents of each kind
CHANCE = 0.6931  # log 2: the loss of one who cannot tell


def correction(logit, x, sigma, path, *, weight=1.0, boost=1.0):
    """What to add to denoised: weight sigma^2 / alpha times the gradient of logit(x, sigma), (B, C, ..., H, W).

    x (B, C, ..., H, W) is noisy, sigma (B,); logit(x, sigma) -> (B,), differentiable, is log(q / p). By Tweedie's formula
    alpha denoised = x + sigma^2 score, so that at weight 1 the exact logit makes of p's denoiser q's; on VE paths d gains
    -weight sigma gradient, the paper's correction. weight is a number or (B,), 0 for none. boost multiplies it for items
    that look generated, logit < 0; 1 is neutral. At sigma 1 of a flow, where alpha is 0, this is the limit. Works inside
    inference mode, and changes nothing in place.
    """
    with torch.inference_mode(False), torch.enable_grad():
        noisy = x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True).requires_grad_()
        levels = sigma.detach().to(noisy, copy=True)
        levels = levels.clamp(max=path.sigma_first) if path.is_flow else levels
        value = logit(noisy, levels)
        (gradient,) = torch.autograd.grad(value.sum(), noisy)
    scale = weight * torch.where(value.detach() < 0, boost, 1.0) * levels**2 / path.alpha(levels)
    return (append_dims(scale.to(gradient), gradient) * gradient).to(x.dtype)


class Block(nn.Module):
    """A residual block that is told the noise level. What it adds is normalised, what it passes on keeps its level."""

    def __init__(self, channels):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.modulation = nn.Linear(EMBEDDING, 2 * channels)
        nn.init.zeros_(self.convolutions[1].weight)
        nn.init.zeros_(self.convolutions[1].bias)

    def forward(self, h, embedding):
        gain, shift = self.modulation(embedding)[..., None, None].chunk(2, dim=1)
        inside = self.convolutions[0](silu(self.norms[0](h)))
        return h + self.convolutions[1](silu(self.norms[1](inside) * (1 + gain) + shift))


class Discriminator(nn.Module):
    """logit(x, sigma) -> (B,), for x (B, C, L), (B, C, H, W) of any size or (B, C, F, H, W), whose frames it averages over.

    The logit is alpha_vp times what the network says: at pure noise nobody can tell, and ``correction`` stays finite. A new one
    says 0 to everything.
    """

    def __init__(self, channels, path):
        super().__init__()
        self.channels, self.path = channels, path
        self.register_buffer("frequencies", FREQUENCIES.clone(), persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(2 * len(FREQUENCIES), EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU()
        )
        self.enter = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.wide = Block(WIDTH)
        self.halve = nn.Conv2d(WIDTH, DEEP, 3, stride=2, padding=1)
        self.deep = Block(DEEP)
        self.leave = nn.Linear(DEEP, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x, sigma):
        latent, alpha, _ = self.path.to_vp(x, sigma)
        angles = self.path.lam(sigma).clamp(-10, 10)[:, None] * self.frequencies.to(sigma)
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1).to(self.enter.weight))
        frames = latent.unsqueeze(2) if x.ndim == 3 else latent
        count = frames.shape[2] if x.ndim == 5 else 1
        if x.ndim == 5:
            frames = frames.movedim(2, 1).flatten(0, 1)
        embedding = embedding.repeat_interleave(count, dim=0)
        h = self.wide(self.enter(frames.to(self.enter.weight)), embedding)
        h = self.deep(self.halve(silu(h)), embedding)
        said = self.leave(silu(h).mean((2, 3))).view(len(x), count).mean(1)
        return alpha * said.to(x)


@dataclass(frozen=True)
class Fitted:
    """A discriminator, after how many steps, and how well it tells latents apart that it was not fitted on.

    loss is the binary cross-entropy, CHANCE where it cannot tell; accuracy from 0 to 1; held_out how many latents of each kind.
    """

    discriminator: Discriminator
    steps: int
    loss: float
    accuracy: float
    held_out: int


def check_latents(real, generated):
    """ValueError unless both (N, C, ..., H, W) hold latents of the same shape, and enough of them."""
    if real.shape[1:] != generated.shape[1:]:
        raise ValueError(
            f"real holds latents of shape {tuple(real.shape[1:])} and generated of {tuple(generated.shape[1:])}: make both with "
            "the same model, at the same size."
        )
    for name, latents in (("real", real), ("generated", generated)):
        if len(latents) < LEAST:
            raise ValueError(f"{name} holds {len(latents)} latents: give at least {LEAST}, better hundreds, of each kind.")
        if not latents.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite: sample or encode it anew.")


def fit(real, generated, path, sigmas, *, steps, batch, seed, progress=lambda step, loss: True, device="cpu"):
    """A discriminator of real (N, C, ..., H, W) against generated (M, C, ..., H, W), both on the model's own scale: Fitted.

    Binary cross-entropy at noise levels drawn from sigmas (T,), a list that is as dense as the model's schedule. batch is the
    number of latents of each kind a step; both kinds get the same noise, which lessens chance. progress(step, loss) is called
    after each step, loss a tensor (), and returns whether to go on. The same seed gives the same network, on a GPU up to
    rounding; torch's own generators are left alone. ValueError for latents that ``check_latents`` refuses.
    """
    check_latents(real, generated)
    with torch.inference_mode(False), torch.enable_grad():
        generator = torch.Generator().manual_seed(seed)
        (real, real_kept), (generated, generated_kept) = (parted(each.float(), generator) for each in (real, generated))
        sigmas = sigmas.detach().float().cpu().clone()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
            discriminator = Discriminator(real.shape[1], path).to(device)
        optimiser = torch.optim.AdamW(discriminator.parameters(), lr=LEARNING_RATE)
        for step in range(1, steps + 1):
            latents = [each[torch.randint(len(each), (batch,), generator=generator)] for each in (real, generated)]
            loss, _ = tell(discriminator, latents, draw(sigmas, batch, generator), generator, device)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if not progress(step, loss.detach()):
                break
        return judged(discriminator.eval().requires_grad_(False), step, (real_kept, generated_kept), sigmas, seed, device)


def parted(latents, generator):
    """(those to fit on, those to judge by), shuffled, as tensors that autograd may use."""
    kept = max(1, round(HELD_OUT * len(latents)))
    shuffled = latents.detach().cpu()[torch.randperm(len(latents), generator=generator)]
    return shuffled[kept:], shuffled[:kept]


def draw(sigmas, count, generator):
    return sigmas[torch.randint(len(sigmas), (count,), generator=generator)]


def tell(discriminator, latents, levels, generator, device):
    """(loss (), accuracy ()) on real and generated latents (B, C, ...) at noise levels (B,)."""
    noise = torch.randn(latents[0].shape, generator=generator)
    signal, noise = append_dims(discriminator.path.alpha(levels), noise), append_dims(levels, noise) * noise
    noisy = torch.cat([signal * each + noise for each in latents]).to(device)
    logit = discriminator(noisy, levels.repeat(2).to(device))
    signed = torch.cat([logit[: len(levels)], -logit[len(levels) :]])
    return softplus(-signed).mean(), (signed > 0).float().mean()


def judged(discriminator, steps, kept, sigmas, seed, device, rounds=32):
    """Fitted, with loss and accuracy over ``rounds`` noise levels for each pair of latents held out."""
    generator = torch.Generator().manual_seed(seed)
    count = min(map(len, kept))
    pairs = [each[:count] for each in kept]
    results = [tell(discriminator, pairs, draw(sigmas, count, generator), generator, device) for _ in range(rounds)]
    loss, accuracy = (float(torch.stack(values).mean()) for values in zip(*results))
    return Fitted(discriminator, steps, loss, accuracy, count)
