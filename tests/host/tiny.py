"""Small genuine ComfyUI models with random weights: one per path and latent layout, built from core's own classes."""

import comfy.model_management as mm
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch

FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 128, "num_heads": 1,
    "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "mlp_ratio": 4.0, "qkv_bias": True,
    "vec_in_dim": 64, "context_in_dim": 64, "guidance_embed": False, "txt_ids_dims": [],
}  # fmt: skip
SD1 = {
    "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": (1, 2),
    "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "context_dim": 64, "num_heads": 2,
    "num_head_channels": -1, "image_size": 32, "legacy": False, "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 1,
    "text_dim": 64, "in_dim": 16, "out_dim": 16, "patch_size": (1, 2, 2), "freq_dim": 32, "text_len": 8,
    "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip
MODELS = {  # name: core's class, its network, the shape of one latent
    "flow": (comfy.supported_models.FluxSchnell, FLUX, (16, 8, 8)),
    "eps": (comfy.supported_models.SD15, SD1, (4, 8, 8)),
    "video": (comfy.supported_models.WAN21_T2V, WAN, (16, 3, 8, 8)),
}


DROPS = {"threshold": 1.01, "min_guided": 1, "recheck": 0, "instead": "nothing"}  # adaptive that goes by ``max_guided`` alone


def assert_same(a, b):
    """Bit for bit."""
    assert a.isfinite().all()
    assert torch.equal(a, b)


def build(name, dtype=torch.float32):
    """(model, latent shape of one item)."""
    kind, network, shape = MODELS[name]
    return build_from(kind, network, dtype), shape


def build_from(kind, network, dtype=torch.float32):
    """A model of core's class ``kind``. The network is filled with seeded noise: core leaves it uninitialised."""
    config = kind(dict(network))
    config.set_inference_dtype(dtype, None)
    with torch.inference_mode(False):
        model = config.get_model({}, "", device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        for parameter in model.diffusion_model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (0.5 * noise / max(parameter.shape[-1], 1) ** 0.5).to(parameter.dtype)
    return comfy.model_patcher.CoreModelPatcher(
        model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )


def prompt(seed):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 8, 64, generator=generator), {"pooled_output": torch.randn(1, 64, generator=generator)}]]


def noise_for(shape, seeds):
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample(model, noise, *, sampler="euler", steps=4, cfg=4.0, sigmas=None, latent=None, mask=None, callback=None, seed=5):
    """One run through core's guider, from the given noise."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(1), prompt(2))
    guider.set_cfg(cfg)
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    if isinstance(sampler, str):
        sampler = comfy.samplers.sampler_object(sampler)
    latent = torch.zeros_like(noise) if latent is None else latent
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas, mask, callback, disable_pbar=True, seed=seed)


def run(node, **inputs):
    """A node's outputs, as ComfyUI would get them."""
    return node.EXECUTE_NORMALIZED(**inputs).args


def node_offering(nodes, method):
    """The node that has this registry entry among its choices."""
    for name, node in nodes.items():
        if name.startswith("Distillery_"):
            for entry in node.GET_SCHEMA().inputs:
                if entry.id == "method" and method in [option.key for option in entry.options]:
                    return node
    raise LookupError(f"no node offers {method}")


def sampler(nodes, method, **knobs):
    return run(node_offering(nodes, method), method={"method": method, **knobs})[0]


def guided(nodes, model, method="apg", **knobs):
    return run(node_offering(nodes, method), model=model, method={"method": method, **knobs})[0]


def guided_with_report(nodes, model, method, **knobs):
    return run(node_offering(nodes, method), model=model, method={"method": method, **knobs})


def schedule(model, steps=6):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def sample_with(guider, noise, sigmas, sampler="euler", **extra):
    """One run of any guider, from the given noise."""
    with torch.inference_mode():
        sampler = comfy.samplers.sampler_object(sampler)
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5, **extra)


def percent_between(model, sigma, following):
    """A share of sampling whose noise level lies between these two, near the second: for core's start and end percents."""
    to_sigma, level = model.get_model_object("model_sampling").percent_to_sigma, 0.1 * sigma + 0.9 * following
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if to_sigma(middle) >= level else (low, middle)
    assert following < to_sigma(high) < sigma
    return high


def unguided_from(nodes, model, sigmas, step, end=None):
    """Core's CFGOverride with CFG 1 at the levels of ``step`` and later steps, or of those from ``step`` until before ``end``."""
    start = percent_between(model, float(sigmas[step - 1]), float(sigmas[step])) if step else 0.0
    stop = 1.0 if end is None else percent_between(model, float(sigmas[end - 1]), float(sigmas[end]))
    return run(nodes["CFGOverride"], model=model, cfg=1.0, start_percent=start, end_percent=stop)[0]


def totals(report):
    """Of a report's only run: its totals and its rows."""
    (only,) = report.runs
    return only["totals"], only["steps"]
