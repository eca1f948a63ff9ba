"""How far a candidate is from a reference, picture by picture or latent by latent."""

from pathlib import Path

import torch
import torch.nn.functional as F

PSNR_CAP = 100.0  # dB, an error of 1e-5: equal pictures have infinite PSNR, which JSON cannot write
SSIM_SIDE, LPIPS_SIDE = 11, 64  # the smallest pictures that the window of SSIM and the layers of AlexNet can read
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file, in torch hub's cache
ROUNDING = 20 / 12 / 255**2  # what rounding to 8 bits adds to the variance of the Laplacian
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
RGB_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))  # IEC 61966-2-1, D65


def compare(reference, candidate, measured=lambda: None):
    """Fidelity of each candidate to its reference: IMAGE batches (B, H, W, 3 or more) in [0, 1], both of one shape.

    Returns {metric: {"mean": float, "items": [float per picture]}}, ready for JSON. Alpha is left out, and values outside
    [0, 1] are clipped, as when a picture is saved. In brackets what equal pictures give, exactly:

    - psnr [100]: 10 log10(1 / MSE) in dB, at most 100.
    - ssim [1]: structural similarity, Wang et al. 2004, doi:10.1109/TIP.2003.819861, window 11, sigma 1.5.
    - lpips [0]: Zhang et al. 2018, arXiv:1801.03924, on AlexNet; only where ``lpips_weights()`` finds its weights and
      the sides are 64 or more.
    - mean_difference, max_difference [0]: of the absolute differences, in [0, 1].
    - sharpness_ratio [1]: see ``sharpness``; candidate over reference. Below 1: blurred.
    - delta_e [0]: mean over pixels of the CIELAB distance (CIE 1976); about 2.3 is just noticeable.
    - colour_shift [0]: CIELAB distance of the mean colours: a tint of the whole picture.
    - contrast_shift, saturation_shift [0]: candidate minus reference, of the standard deviation of lightness L* and of
      the mean chroma sqrt(a*^2 + b*^2). Above 0: harsher, or more colourful.

    ``measured()`` is called after each picture, so that a user can see it and stop it. Raises ValueError for other or
    different shapes, NaN, infinities, sides below 11, and where torchmetrics is missing.
    """
    check_pair(reference, candidate)
    for name, images in (("reference", reference), ("candidate", candidate)):
        if images.ndim != 4 or images.shape[-1] < 3:
            raise ValueError(f"{name}: got shape {tuple(images.shape)}, and pictures are (batch, height, width, 3 channels).")
        if min(images.shape[1:3]) < SSIM_SIDE:
            raise ValueError(f"{name}: pictures of {size(images)} are too small for SSIM; give {SSIM_SIDE} or more a side.")
    measures = (fidelity, structural_similarity, lpips_measure(reference), colour_drift)
    rows = []
    for pair in zip(reference, candidate):
        a, b = (image[None, ..., :3].movedim(-1, 1).double().clamp(0, 1) for image in pair)  # (1, 3, H, W)
        rows.append({name: float(value) for measure in measures for name, value in measure(a, b).items()})
        measured()
    return table(rows)


def compare_latents(reference, candidate):
    """Fidelity of latents (B, C, ..., H, W) of one shape, as ``compare``: in brackets what equal latents give, exactly.

    - latent_relative_error [0]: |candidate - reference| / |reference|, Euclidean norms over the whole item.
    - latent_cosine [1]: cosine of the angle between the two; 0 where the candidate is all zeros.

    Raises ValueError for different shapes, NaN, infinities, and a reference that is all zeros.
    """
    check_pair(reference, candidate)
    rows = []
    for item, (a, b) in enumerate(zip(reference, candidate)):
        a, b = a.double().flatten(), b.double().flatten()
        aa, bb = a @ a, b @ b
        if not aa > 0:
            raise ValueError(
                f"reference: item {item} is all zeros, so no error can be relative to it. Connect a latent that a sampler or "
                "VAE Encode made."
            )
        cosine = (a @ b) / (aa * bb).sqrt() if bb > 0 else 0.0
        rows.append({"latent_relative_error": float((b - a).norm() / aa.sqrt()), "latent_cosine": float(cosine)})
    return table(rows)


def clip_score(image_embeddings, text_embeddings):
    """CLIPScore of each picture and its prompt: 100 max(cos, 0), Hessel et al. 2021, arXiv:2104.08718, equation 1.

    Embeddings (B, D) of both towers of one CLIP, to (B,) in [0, 100]; the paper's own factor is 2.5. Raises ValueError for
    different shapes, NaN and infinities.
    """
    check_pair(image_embeddings, text_embeddings, ("image_embeddings", "text_embeddings"))
    return 100 * F.cosine_similarity(image_embeddings.double(), text_embeddings.double(), dim=-1).clamp_min(0)


def table(rows):
    items = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: {"mean": sum(values) / len(values), "items": values} for name, values in items.items()}


def size(images):
    return f"{images.shape[2]} x {images.shape[1]}"


def check_pair(reference, candidate, names=("reference", "candidate")):
    """ValueError unless both hold the same number of items, at least one, of the same shape, all finite."""
    for name, values in zip(names, (reference, candidate)):
        if values.shape[0] == 0:
            raise ValueError(f"{name}: the batch is empty. Give at least one item.")
        if not torch.isfinite(values).all():
            bad = next(item for item, value in enumerate(values) if not torch.isfinite(value).all())
            raise ValueError(f"{name}: item {bad} holds NaN or infinite values. Look for what failed before it, often the VAE.")
    if reference.shape != candidate.shape:
        raise ValueError(
            f"{names[1]} has shape {tuple(candidate.shape)} and {names[0]} {tuple(reference.shape)}: they are compared item by "
            "item. Make both with the same batch size and resolution, or bring them to it first."
        )


# Each of these takes two pictures (1, 3, H, W), float64 in [0, 1], reference first, and returns {metric: value}.


def fidelity(a, b):
    difference = (b - a).abs()
    psnr = -10 * difference.square().mean().clamp_min(10 ** (-PSNR_CAP / 10)).log10()
    ratio = (sharpness(b) + ROUNDING) / (sharpness(a) + ROUNDING)
    return {
        "psnr": psnr, "mean_difference": difference.mean(), "max_difference": difference.max(), "sharpness_ratio": ratio,
    }  # fmt: skip


def sharpness(image):
    """Variance of the Laplacian of luma, Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548. (1, 3, H, W) to a number."""
    luma = torch.einsum("c,bchw->bhw", image.new_tensor(LUMA), image)[:, None]
    return F.conv2d(luma, image.new_tensor(LAPLACIAN)[None, None]).var(correction=0)


def structural_similarity(a, b):
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except (ImportError, RuntimeError) as reason:  # a torchvision built for another torch raises RuntimeError
        raise ValueError(f"torchmetrics: {reason}, and SSIM needs it. Install it with: pip install torchmetrics") from reason
    if torch.equal(a, b):
        return {"ssim": 1.0}  # what rounding in the window sums would miss by 1e-16
    return {"ssim": structural_similarity_index_measure(b, a, data_range=1.0)}


def to_lab(image):
    """sRGB (..., 3, H, W) in [0, 1] to CIELAB, white D65: IEC 61966-2-1 and CIE 15:2004."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    matrix = image.new_tensor(RGB_TO_XYZ)
    matrix = matrix / matrix.sum(1, keepdim=True)  # relative to white
    t = torch.einsum("xc,...chw->...xhw", matrix, linear)
    delta = 6 / 29
    x, y, z = torch.where(t > delta**3, t.clamp_min(delta**3) ** (1 / 3), t / (3 * delta**2) + 4 / 29).unbind(-3)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -3)


def colour_drift(a, b):
    a, b = to_lab(a)[0], to_lab(b)[0]  # (3, H, W)
    chroma_a, chroma_b = a[1:].norm(dim=0).mean(), b[1:].norm(dim=0).mean()
    return {
        "delta_e": (b - a).norm(dim=0).mean(),
        "colour_shift": (b.mean((1, 2)) - a.mean((1, 2))).norm(),
        "contrast_shift": b[0].std(correction=0) - a[0].std(correction=0),
        "saturation_shift": chroma_b - chroma_a,
    }


def lpips_weights():
    """The file of AlexNet weights in torch hub's cache (under ``TORCH_HOME``), or None. Nothing is ever downloaded.

    It is what torchvision stores for AlexNet_Weights.IMAGENET1K_V1; LPIPS's own small layers come with torchmetrics.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    return file if file.is_file() else None


def lpips_measure(images):
    """LPIPS as a measure like the others; one without a result where it cannot be computed."""
    if lpips_weights() is None or min(images.shape[1:3]) < LPIPS_SIDE:
        return lambda a, b: {}
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    measure = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
    return lambda a, b: {"lpips": measure(b.float(), a.float())}
