"""What the stochastic solvers share: steps that swap predicted noise for fresh noise, raising noise, and Heun's step.

On every path x = alpha denoised + sigma eps, eps being the predicted noise. Written in these two parts, a step needs no VE
coordinates, keeps the path's own share of noise, and holds at sigma 1 of a flow, where the VE image is infinite.
"""

from ..core import predicted_noise, to_d


def renoised(path, x, denoised, sigma, sigma_next, keep, fresh, noise_sampler):
    """A step that keeps a share of eps and adds fresh noise: ``alpha' denoised + sigma' (keep eps + fresh n)``.

    keep^2 + fresh^2 = 1 leaves the noise at sigma'. keep 1 is DDIM, the same as Euler; keep 0 is the consistency (LCM) step.
    """
    eps = keep * predicted_noise(path, x, denoised, sigma)
    if fresh:
        eps = eps + fresh * noise_sampler(sigma, sigma_next)
    return path.alpha(sigma_next) * denoised + sigma_next * eps


def shares_through(path, below, levels):
    """(keep, fresh) for ``renoised``, lists of (n,): jump to ``below``, at most levels, and raise the noise to levels from there.

    CPU, float64, (n,) both. nan at level 0, which no step adds noise to.
    """
    keep = below * path.alpha(levels) / (path.alpha(below) * levels)  # below / levels on VE, less on flow
    return keep.tolist(), (1 - keep**2).sqrt().tolist()


def raised(path, x, sigma, sigma_up, s_noise, noise_sampler):
    """x with its noise raised from sigma to sigma_up: exact on every path, also up to sigma 1 of a flow.

    On VE this adds noise of variance sigma_up^2 - sigma^2; on flow the signal shrinks as well.
    """
    ratio = path.alpha(sigma_up) / path.alpha(sigma)
    added = (sigma_up**2 - (ratio * sigma) ** 2).sqrt()
    return ratio * x + s_noise * added * noise_sampler(sigma, sigma_up)


def euler_step(denoise, x, denoised, sigma, sigma_next):
    return x + (sigma_next - sigma) * to_d(x, sigma, denoised)


def heun_step(denoise, x, denoised, sigma, sigma_next):
    """Euler, then the mean of the slopes at both ends. sigma_next > 0. One further model call."""
    d = to_d(x, sigma, denoised)
    ahead = x + (sigma_next - sigma) * d
    return x + (sigma_next - sigma) * (d + to_d(ahead, sigma_next, denoise(ahead, sigma_next))) / 2


def check_range(low_name, low, high_name, high):
    """ValueError unless two knobs that bound a range of noise levels are in order."""
    if low >= high:
        raise ValueError(f"{low_name} is {low:g} and {high_name} {high:g}: the range is empty. Make {low_name} the smaller one.")


def nearest_inner(sigmas, target, name, remedy, below=float("inf")):
    """Index of the noise level nearest to target among those between the run's ends, or its end above 0, under ``below``.

    sigmas: CPU. ValueError, which names the knob and the remedy, where there is none.
    """
    inner = [(abs(sigma - target), i) for i, sigma in enumerate(sigmas.tolist()) if i and 0 < sigma < below]
    if not inner:
        raise ValueError(f"{name}: sigmas has no such noise level after its first. {remedy}")
    return min(inner)[1]
