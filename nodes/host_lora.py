"""A trained LoRA used in the graph at once: the way core's loader would use its file."""

import comfy.lora
import comfy.sd

CORE_PREFIX = "diffusion_model."  # before a module's path: core's own dialect, which it reads for every architecture


def core_state(lora):
    """{key: tensor} of a LoraSet, as core's SaveLoRA writes it and its loaders read it."""
    return {CORE_PREFIX + key: tensor for key, tensor in lora.state().items()}


def as_patches(lora, model, strength=1.0):
    """A clone of a MODEL with a LoraSet patched in, bit for bit what core's LoRA loader makes of its file at this strength.

    ValueError where the MODEL has no layer for a part of it.
    """
    state = core_state(lora)
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    paths = {key.rsplit(".lora_", 1)[0].removesuffix(".alpha") for key in state}
    missing = sorted(path.removeprefix(CORE_PREFIX) for path in paths if path not in known)
    if missing:
        raise ValueError(f"the LoRA changes {missing[0]}, which this model does not have: it was made for another model.")
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0.0)[0]
