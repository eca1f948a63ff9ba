"""What other packs do, written from their descriptions, as patches of a MODEL: at their best, each picture deciding for itself."""

import torch
from comfyui_distillery.samplers.core import append_dims


def adaptive_guider(model, threshold):
    """asagi4's Adaptive Guider: CFG until the two denoised predictions agree, cosine at or above threshold, and never again then.

    Theirs is a GUIDER that takes one cosine of the whole batch; here each picture has its own, as if it were sampled alone. No
    evaluation is saved where another picture of the batch needs it: count with ``guided``.
    """
    from comfy.patcher_extension import WrappersMP

    model, guided = model.clone(), {}

    def calc_cond_batch(executor, inner, conds, x, timestep, model_options):
        cond, uncond = executor(inner, conds, x, timestep, model_options)
        resting = guided.setdefault("resting", torch.zeros(len(x), dtype=torch.bool))
        guided["count"] = guided.get("count", 0) + int((~resting).sum())
        uncond = torch.where(append_dims(resting, x), cond, uncond)
        resting |= torch.cosine_similarity(cond.flatten(1), uncond.flatten(1)) >= threshold
        return [cond, uncond]

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "rival", calc_cond_batch)
    return model, guided
