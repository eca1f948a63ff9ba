"""Keys and shapes of LoRA files as they are published: the layers of each base in ComfyUI's and diffusers' names, in every layout."""

RANK = 8


def unet(context, depth=1, deepest=1, linear=1280):
    """(ComfyUI's names, diffusers' names) of some of a Stable Diffusion UNet's layers, {layer: (in, out)}."""
    block = {"attn1.to_q": (linear, linear), "attn2.to_k": (context, linear), "attn2.to_v": (context, linear)}
    ours, theirs = {"time_embed.0": (320, 1280)}, {"time_embedding.linear_1": (320, 1280)}
    for blocks, (core, diffusers) in (
        (depth, ("input_blocks.4.1", "down_blocks.1.attentions.0")),
        (deepest, ("input_blocks.7.1", "down_blocks.2.attentions.0")),
        (depth, ("output_blocks.3.1", "up_blocks.1.attentions.0")),
    ):
        for number in range(blocks):
            ours |= {f"{core}.transformer_blocks.{number}.{name}": widths for name, widths in block.items()}
            theirs |= {f"{diffusers}.transformer_blocks.{number}.{name}": widths for name, widths in block.items()}
    return ours, theirs


def rows(pattern, count, layers):
    return {f"{pattern.format(number)}.{name}": widths for number in range(count) for name, widths in layers.items()}


def sd3(width, depth):
    streams = {"x_block.attn.qkv": (width, 3 * width), "context_block.attn.qkv": (width, 3 * width)}
    attn = {"attn.to_q": (width, width), "attn.add_k_proj": (width, width), "attn.to_out.0": (width, width)}
    return rows("joint_blocks.{}", depth, streams), rows("transformer_blocks.{}", depth, attn)


def flux_like(width, double, single, mlp, linear1, modulation="mod.lin", extra=(), theirs_extra=()):
    h = width
    ours = rows("double_blocks.{}", double, {"img_attn.qkv": (h, 3 * h), f"img_{modulation}": (h, 6 * h), "img_mlp.0": (h, mlp)})
    ours |= rows("single_blocks.{}", single, {"linear1": (h, linear1)})
    attn = {"attn.to_q": (h, h), "attn.add_k_proj": (h, h)}
    theirs = rows("transformer_blocks.{}", double, attn) | rows("single_transformer_blocks.{}", single, {"attn.to_q": (h, h)})
    return ours | dict(extra), theirs | dict(theirs_extra)


FLUX = flux_like(3072, 19, 38, 12288, 21504, theirs_extra={"single_transformer_blocks.0.norm.linear": (3072, 9216)}.items())
QWEN = rows("transformer_blocks.{}", 60, {"attn.to_q": (3072, 3072), "attn.add_k_proj": (3072, 3072), "img_mlp.net.0.proj": (3072, 12288)})


def wan(width):
    ours = {"self_attn.q": (width, width), "cross_attn.k": (width, width), "cross_attn.k_img": (width, width), "ffn.0": (width, 8960)}
    theirs = {"attn1.to_q": (width, width), "attn2.to_k": (width, width), "ffn.net.0.proj": (width, 8960)}
    return rows("blocks.{}", 4, ours), rows("blocks.{}", 4, theirs)


def ltx(width, *, audio=False):
    layers = {"attn1.to_q": (width, width), "attn2.to_k": (width, width), "ff.net.0.proj": (width, 4 * width)}
    layers |= {"audio_attn1.to_q": (2048, 2048), "audio_to_video_attn.to_k": (2048, 2048)} if audio else {}
    return (rows("transformer_blocks.{}", 4, layers),) * 2


LAYERS = {  # base: (ComfyUI's names, diffusers' names)
    "sd15": unet(768),
    "sd2": unet(1024),
    "sdxl": unet(2048, 2, 10),
    "ssd-1b": unet(2048, 2, 4),
    "sd3": sd3(1536, 24),
    "sd35-large": sd3(2432, 38),
    "flux": FLUX,
    "flux2": flux_like(6144, 8, 48, 36864, 55296),
    "flux2-klein-4b": flux_like(
        3072, 5, 20, 18432, 27648, theirs_extra={"single_transformer_blocks.0.attn.to_qkv_mlp_proj": (3072, 27648)}.items()
    ),
    "flux2-klein-9b": flux_like(4096, 8, 24, 24576, 36864),
    "hunyuan-video": flux_like(3072, 20, 40, 12288, 21504, "mod.linear"),
    "qwen-image": (QWEN, QWEN),
    "z-image": (
        rows("layers.{}", 30, {"attention.qkv": (3840, 11520), "feed_forward.w1": (3840, 10240)}),
        rows("layers.{}", 30, {"attention.to_q": (3840, 3840), "attention.to_out.0": (3840, 3840)}),
    ),
    "wan21": wan(5120),
    "wan21-1.3b": wan(1536),
    "ltxv": ltx(4096),
    "ltx2": ltx(4096, audio=True),
    "pixart": (
        rows("transformer_blocks.{}", 28, {"attn1.to_q": (1152, 1152), "attn2.to_k": (1152, 1152)}),
        rows("transformer_blocks.{}", 28, {"attn1.to_q": (1152, 1152), "attn2.to_k": (1152, 1152)}),
    ),
}


def lora(layers, prefix, down, up, join="."):
    """{key: shape} of a LoRA file."""
    shapes = {}
    for layer, (width_in, width_out) in layers.items():
        name = prefix + layer.replace(".", join)
        shapes |= {name + down: (RANK, width_in), name + up: (width_out, RANK), f"{name}.alpha": ()}
    return shapes


def kohya(base):
    return lora(LAYERS[base][0], "lora_unet_", ".lora_down.weight", ".lora_up.weight", "_")


def comfyui(base):
    return lora(LAYERS[base][0], "diffusion_model.", ".lora_A.weight", ".lora_B.weight")


def peft(base):
    prefix = "unet." if base in ("sd15", "sd2", "sdxl", "ssd-1b") else "transformer."
    return lora(LAYERS[base][1], prefix, ".lora_A.weight", ".lora_B.weight")


def kohya_diffusers(base):
    return lora(LAYERS[base][1], "lora_unet_", ".lora_down.weight", ".lora_up.weight", "_")
