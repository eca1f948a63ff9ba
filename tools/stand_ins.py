"""Small files with random weights under the names of published models, for workflows whose models cannot come with the pack.

ComfyUI reads the sizes of a network from its file: what runs is the real architecture, only smaller.
"""

import contextlib
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from .inprocess import import_comfyui
from .prompt import load_prompt, override

SMALLER = {  # workflow: what to set so that it runs with them, and soon
    "23-discriminator": ("Fit Discriminator.steps=30",),
    "32-distill": (
        "Recipe.run.steps=3", "Recipe.run.batch=2", "Recipe.data.count=2", "Recipe.data.teacher_steps=3", "Recipe.objective.substeps=1",
        "Distill.minutes=0", "Compare Steps.steps=4", "Compare Steps.teacher_steps=8",
    ),
    "33-guidance-free": (
        "Recipe.run.steps=3", "Recipe.run.batch=2", "Recipe.data.count=2", "Recipe.data.teacher_steps=3", "Distill.minutes=0",
    ),
    # A UMT5-XXL cannot be small: a CLIP-L, of SD3's width, reads the prompt.
    "31-cache-video": ("Text Encoder.type=sd3", "Size.width=64", "Size.height=64", "Size.length=9"),
}  # fmt: skip


def load_runnable(file):
    """The workflow, set so that it runs where there are no models but these and the pack's own."""
    prompt = load_prompt(file)
    for text in SMALLER.get(Path(file).stem, ()):
        override(prompt, text)
    return prompt


@contextlib.contextmanager
def stand_ins():
    """While it lasts, ComfyUI started with these arguments finds the stand-ins, before any other files of their names."""
    with tempfile.TemporaryDirectory(prefix="distillery-models-", ignore_cleanup_errors=True) as folder:
        for path, weights in _files():
            path = Path(folder) / path
            path.parent.mkdir(exist_ok=True)
            save_file(weights, path)
        kinds = {path.name: path.name for path in Path(folder).iterdir()}
        paths = Path(folder) / "paths.yaml"
        paths.write_text(json.dumps({"stand_ins": {"base_path": folder, "is_default": True, **kinds}}))  # JSON is YAML
        yield "--extra-model-paths-config", paths


def _files():
    import_comfyui()
    import comfy.clip_model
    import comfy.ldm.wan.model
    import comfy.ldm.wan.vae
    import comfy.ops
    import comfy.sd1_clip

    common = {"device": torch.device("cpu"), "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}
    wan = comfy.ldm.wan.model.WanModel(dim=128, ffn_dim=256, num_heads=1, num_layers=4, **common)
    weights = _noise(wan)
    weights["head.head.weight"] /= 10  # slopes small beside the noise, as of a network that can be foretold
    yield "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors", weights
    vae = comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])
    yield "vae/wan_2.1_vae.safetensors", _noise(vae)

    settings = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text("utf-8"))
    clip = comfy.clip_model.CLIPTextModel(settings, **{**common, "device": "meta"})
    weights = {name: torch.zeros(tensor.shape, dtype=torch.float8_e4m3fn) for name, tensor in clip.state_dict().items()}
    tokens = "text_model.embeddings.token_embedding.weight"  # the layers add nothing to them
    weights[tokens] = _drawn(weights[tokens].shape, 0).to(torch.float8_e4m3fn)
    yield "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", weights


def _noise(network):
    """Seeded weights for all of it, of a size that lets what passes neither grow nor vanish."""
    state = network.state_dict()
    fan_in = {name: tensor[0].numel() if tensor.ndim > 1 else 1 for name, tensor in state.items()}
    return {name: (_drawn(tensor.shape, seed) / fan_in[name] ** 0.5).half() for seed, (name, tensor) in enumerate(state.items())}


def _drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
