"""Which base a LoRA file is for, from its keys and shapes, and which profile, from its name and metadata."""

import re
from pathlib import PurePath

from .bases import BASES
from .published import PROFILES

PREFIXES = re.compile(
    r"^(model\.diffusion_model\.|diffusion_model\.|(unet\.)?base_model\.model\.|transformer\.|unet\.|lora_unet_|lora_transformer_|lycoris_)"
)
PARTS = re.compile(
    r"(\.lora_(down|up|A|B|mid)(\.default)?(\.weight)?|[._]lora\.(down|up)\.weight|\.lora_linear_layer\.(down|up)\.weight|\.alpha"
    r"|\.dora_scale|\.diff(_b)?|\.hada_\w+|\.lokr_\w+)$"
)
DOWN = re.compile(r"(\.lora_(down|A)(\.default)?(\.weight)?|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight)$")
UP = re.compile(r"(\.lora_(up|B)(\.default)?(\.weight)?|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight)$")
SAME_LAYERS = {"flux": ("flux", "flux-schnell"), "wan21": ("wan21", "wan22")}  # bases that no LoRA's keys can tell apart
GENERIC = re.compile(  # names that every trainer gives
    r"(pytorch_lora_weights|(diffusion_)?pytorch_model|adapter_model|model|unet|transformer|lora)(\.(fp16|bf16|fp32))?(-\d+-of-\d+)?"
    r"(\.(safetensors|sft|bin|ckpt|pt))?$"
)
DEDISTILLED = re.compile(r"(open|libre)[-_. ]?flux|dedistill|(^|[^a-z])de[-_. ]distill|(^|[^a-z])(un|non)[-_. ]?distill")
TECHNICAL = re.compile(  # words of three letters and more that tell how a file was made or what it is for, and nothing of a style
    "safetensors|sft|ckpt|gguf|bin|lo(ra|con|ha|kr)s?|rank|dim|comfy(ui)?v?|kijai|diffusers|official|converted|pruned|extracted|resized|"
    "scaled|mixed|float|dynamic|adaptive|quantile|fro|avg|nvfp|int|convrot|svdq|ema|weights|model|checkpoint|unet|full|final|learned|"
    "bidirect|first|block|cfg|cfgdistill|steps?|noise|high|low|dmd|sid|heun|unlocked|base|dev|edit|image|video|sdv|sdxl|ssd|wan|ltxv?|flux"
)
UNET = r"^(down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks)_"


def modules(shapes):
    """{layer: (in, out)} of a LoRA's {key: shape}: its names in any layout joined by _, widths None where the file has no such part."""
    found = {}
    for key, shape in shapes.items():
        if not PARTS.search(key) or key.startswith(("lora_te", "text_encoder", "te.", "te1.", "te2.")):
            continue
        name = PREFIXES.sub("", PARTS.sub("", key)).replace(".processor", "").replace(".", "_")
        width_in, width_out = found.get(name, (None, None))
        if DOWN.search(key) and len(shape) > 1:
            width_in = shape[1]
        if UP.search(key) and shape:
            width_out = shape[0]
        found[name] = (width_in, width_out)
    return found


def bases_of_lora(shapes):
    """Keys of BASES that a LoRA may be for, by its {key: shape} in the key layout of kohya, diffusers (PEFT) or ComfyUI.

    Several where the layers do not tell; none where nothing is recognised.
    """
    found = modules(shapes)
    for kind in (_unet, _joint_blocks, _double_blocks, _blocks, _lumina, _hidream, _diffusers):
        if bases := kind(found):
            return tuple(key for base in bases for key in SAME_LAYERS.get(base, (base,)))
    return ()


def base_of_lora(shapes):
    """The key of BASES that a LoRA is for, the first where several have the same layers. None where its layers do not tell."""
    bases = bases_of_lora(shapes)
    return bases[0] if bases and bases in [(bases[0],), SAME_LAYERS.get(bases[0])] else None


def candidates(shapes, metadata, filename):
    """[(profile key, steps or None, why), ...], best first: profiles that a file's name or metadata speak for.

    shapes: {key: shape} of a LoRA; empty for a checkpoint, or where nothing is known of the layers. metadata: {name: text} of its
    header. filename: with folders or without; the folder speaks where the name is one that every trainer gives. A profile for another
    base than the layers show is left out, and of LoRAs one that a style may be called after: see ``speaks_for``. steps: where the
    file is for one number of steps.
    """
    bases = bases_of_lora(shapes)
    if is_dedistilled(filename):
        return []
    *folder, name = telling(filename).split("/")
    texts = [("its folder is", folder[0]) if folder else ("its name is", name)]
    texts += [(f"its metadata says {name}", metadata[name]) for name in ("ss_output_name", "modelspec.title") if metadata.get(name)]
    found = []
    for profile in PROFILES.values():
        if (bases and profile.base not in bases) or (shapes and profile.form == "checkpoint"):
            continue
        for rank, (where, text) in enumerate(texts):
            match = speaks_for(profile, text.lower())
            if match:
                steps = match.groupdict().get("steps")
                layers = f", and its layers are those of {BASES[profile.base].title}" if bases else ""
                entry = profile.key, int(steps) if steps else None, f"{where} {text}{layers}"
                found.append((rank, match.start() - match.end(), entry))
                break
    return [entry for _, _, entry in sorted(found, key=lambda each: each[:2])]


def speaks_for(profile, text):
    """The match of one of the profile's patterns in a text of lower case, or None.

    Where a profile may be a LoRA's and the text has no number of steps, it may have no words besides the pattern's own and technical
    ones: flash_sdxl_photography is of a camera.
    """
    for name in profile.names:
        match = re.search(name, text)
        if match is None:
            continue
        if profile.form == "checkpoint" or match.groupdict().get("steps"):
            return match
        own = re.sub("[^a-z]", "", name)
        words = (word for part in (text[: match.start()], match[0], text[match.end() :]) for word in re.findall("[a-z]{3,}", part))
        if all(word in own or TECHNICAL.fullmatch(word) for word in words):
            return match
    return None


def telling(filename):
    """The name of a file, with its folder before it, joined by /, where the name itself is one that trainers give to all: GENERIC."""
    parts = PurePath(filename.replace("\\", "/")).parts
    folder = next((part for part in reversed(parts[:-1]) if not GENERIC.match(part.lower())), "")
    name = parts[-1] if parts else ""
    return f"{folder}/{name}" if folder.strip("/") and GENERIC.match(name.lower()) else name


def is_dedistilled(filename):
    """Whether the name of a file, folders or not, says that its distillation was undone: OpenFLUX, LibreFLUX, de-distilled."""
    return DEDISTILLED.search(telling(filename).lower()) is not None


def _widths(found, pattern, side=0):
    """The widths of layers whose name fits: 0 for what goes in, 1 for what comes out."""
    return {widths[side] for name, widths in found.items() if re.search(pattern, name)} - {None}


def _has(found, pattern):
    return any(re.search(pattern, name) for name in found)


def _highest(found, pattern):
    """The highest number that a pattern's group takes, -1 where it fits nothing."""
    return max((int(match[1]) for match in (re.search(pattern, name) for name in found) if match), default=-1)


def _unet(found):
    """Stable Diffusion's UNets, by the width of the text they attend to; SDXL and SSD-1B by their depth on the way down."""
    context = _widths({name: widths for name, widths in found.items() if re.search(UNET, name)}, "attn2_to_[kv]$")
    if context == {2048}:
        deepest = _highest(found, r"^(?:down_blocks_2|input_blocks_[78])_.*transformer_blocks_(\d+)_")
        return {9: ("sdxl",), 3: ("ssd-1b",)}.get(deepest, ("sdxl",) if deepest > 3 else ())
    return {(768,): ("sd15",), (1024,): ("sd2",), (128,): ("shapes-unet",)}.get(tuple(context), ())


def _joint_blocks(found):
    """SD3 in ComfyUI's names. SD 3.5 Medium, which has a second attention, is no base of a profile."""
    if _has(found, "^joint_blocks_.*attn2_"):
        return ()
    widths = _widths(found, r"^joint_blocks_\d+_(x|context)_block_(attn_qkv|mlp_fc1)")
    return {(1536,): ("sd3",), (2432,): ("sd35-large",)}.get(tuple(widths), ())


def _double_blocks(found):
    """Flux, Flux.2, Chroma and HunyuanVideo in ComfyUI's names."""
    blocks = {name: widths for name, widths in found.items() if re.search("^(double|single)_blocks_", name)}
    if not blocks:
        return ()
    width = max(_widths(blocks, "(qkv|mlp_0|mlp_fc1|linear1|mod_lin|mod_linear|modulation_lin|modulation_linear)$"), default=0)
    if width in (128, 2048, 4096, 6144):
        return {128: ("shapes-dit",), 2048: ("hunyuan-video-15",), 4096: ("flux2-klein-9b",), 6144: ("flux2",)}[width]
    if width != 3072:
        return ()
    if _widths(blocks, "linear1$", 1) & {27648} or _widths(blocks, "mlp_0$", 1) & {18432}:
        return ("flux2-klein-4b",)
    if _highest(blocks, r"^double_blocks_(\d+)") > 18 or _highest(blocks, r"^single_blocks_(\d+)") > 37:
        return ("hunyuan-video",)
    if _has(found, "(mlp_fc[12]|mod_linear|modulation_linear)$|individual_token_refiner"):
        return ("hunyuan-video",)
    if _has(found, "^distilled_guidance_layer"):
        return ("chroma",)
    if _has(found, "(mod_lin|modulation_lin)$|^(guidance_in|vector_in|time_in)_"):
        return ("flux",)
    return _plain_attention(found, r"^double_blocks_(\d+)", r"^single_blocks_(\d+)")


def _plain_attention(found, double, single):
    """What a LoRA may be for that changes nothing but layers which Flux, Chroma and Flux.2 klein 4B have in the same width."""
    few = _highest(found, double) <= 4 and _highest(found, single) <= 19
    return ("flux", "chroma", "flux2-klein-4b") if few else ("flux", "chroma")


def _blocks(found):
    """Wan, in its own names and in diffusers'; Cosmos-Predict2 and PixArt in their own."""
    if _widths(found, r"^blocks_\d+_(attn_qkv|cross_attn_(q|kv)_linear)$") == {1152}:
        return ("pixart",)
    if _has(found, r"^blocks_\d+_(self|cross)_attn_q_proj$"):
        return ("cosmos-predict2",)
    widths = _widths(found, r"^blocks_\d+_((self|cross)_attn_[qkvo]|attn[12]_to_(q|k|v|out_0))$")
    return {(5120,): ("wan21",), (1536,): ("wan21-1.3b",)}.get(tuple(widths), ())


def _lumina(found):
    widths = _widths(found, r"^(layers|noise_refiner|context_refiner)_\d+_(attention_(qkv|out|to_[qkv]|to_out_0)|feed_forward_w[13])$")
    return ("z-image",) if widths == {3840} else ()


def _hidream(found):
    return ("hidream",) if _has(found, r"^(double|single)_stream_blocks_\d+_block_") else ()


def _diffusers(found):
    """transformer_blocks: what half of diffusers' transformers call theirs."""
    if not _has(found, r"^(single_)?transformer_blocks_\d+_"):
        return ()
    if _has(found, r"^transformer_blocks_\d+_(img|txt)_(mlp|mod)"):
        return ("qwen-image",)
    if _has(found, r"^transformer_blocks_\d+_attn[12]_"):
        return _one_stream(found)
    width = max(_widths(found, r"attn_(to|add)_(q|k|v|qkv|q_proj|k_proj|v_proj|qkv_mlp_proj)$"), default=0)
    if width in (1536, 2432, 4096, 6144):
        return {1536: ("sd3",), 2432: ("sd35-large",), 4096: ("flux2-klein-9b",), 6144: ("flux2",)}[width]
    if width != 3072:
        return ()
    if _widths(found, "attn_to_qkv_mlp_proj$", 1) & {27648} or _widths(found, "ff_linear_in$", 1) & {18432}:
        return ("flux2-klein-4b",)
    single = _highest(found, r"^single_transformer_blocks_(\d+)")
    double = _highest(found, r"^transformer_blocks_(\d+)")
    if single > 37 or (single >= 0 and double == 19) or _has(found, "^context_embedder_token_refiner"):
        return ("hunyuan-video",)
    if single < 0 and double > 19:
        return ("qwen-image",)
    if single < 0:
        return ("flux", "chroma", "flux2-klein-4b", "qwen-image", "hunyuan-video")
    if _has(found, r"(norm1_linear|norm_linear|norm1_context_linear)$|^time_text_embed"):
        return ("flux",)
    return _plain_attention(found, r"^transformer_blocks_(\d+)", r"^single_transformer_blocks_(\d+)")


def _one_stream(found):
    """LTX-Video, LTX-2 and PixArt: one stream of tokens that attends to itself and to the text."""
    if _has(found, "audio_"):
        return ("ltx2",)
    widths, text = _widths(found, r"attn1_to_[qkv]$"), _widths(found, r"attn2_to_[kv]$")
    if 1152 in widths | text:
        return ("pixart",)
    if 1024 in text:
        return ("cosmos-predict2",)
    return ("ltxv",) if widths | text <= {2048, 4096} else ()
