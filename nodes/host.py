"""How methods are wired into ComfyUI: the only file that knows its hooks.

Every hook is a keyed wrapper or an entry in a list, never a slot that another pack may also want. What a method
remembers lives in the run's own copy of the model's options, which ComfyUI drops when the run ends.
"""

import math
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context
from tqdm.auto import tqdm

from ..measure.report import Recorder
from ..samplers.path import Path
from .host_batches import Spread

ANSWERED = "distillery_answered"  # in one call's transformer_options: a cache stood in for the network
RUNS = "distillery_runs"  # in transformer_options: token of a hooked method -> what it remembers in this run
PREDICTIONS = (  # subclasses before their parents
    (comfy.model_sampling.IMG_TO_IMG_FLOW, None),
    (comfy.model_sampling.X0, None),
    (comfy.model_sampling.CONST, "flow"),
    (comfy.model_sampling.COSMOS_RFLOW, "cosmos"),
    (comfy.model_sampling.EDM, "edm"),
    (comfy.model_sampling.V_PREDICTION, "v"),
    (comfy.model_sampling.EPS, "eps"),
)


def path_of(sampling):
    """The path of a model, from its ``model_sampling``. ValueError where core mixes signal and noise in another way."""
    prediction = next((name for kind, name in PREDICTIONS if isinstance(sampling, kind)), None)
    if prediction is None:
        raise ValueError(
            f"model has the prediction type {type(sampling).__bases__[-1].__name__}, which this method does not know. Use "
            "one of core's samplers and schedulers with it."
        )
    if prediction == "flow":
        return Path("flow", sigma_first=float(sampling.percent_to_sigma(1e-4)))
    log_sigmas = getattr(sampling, "log_sigmas", None)
    return Path(prediction, sigma_data=float(getattr(sampling, "sigma_data", 1.0)), log_sigmas=log_sigmas)


def check_channels(latent_format, latent, shapes=None):
    """ValueError unless the latent has the model's channel count. A pack of several latents has no channels to check."""
    if shapes is not None and len(shapes) > 1:
        return
    expected = latent_format.latent_channels
    if latent.shape[1] != expected:
        raise ValueError(
            f"latent_image has {latent.shape[1]} channels and this model works on {expected}: make it with an Empty Latent "
            "node for this model, or encode the picture with the VAE that belongs to it."
        )


def is_plain_cfg(guider):
    """Whether the guider guides with one positive and one negative, as KSampler and CFGGuider do."""
    return type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise


# SAMPLER and SIGMAS


def as_sampler(solver, settings, at_start=None):
    """A SAMPLER that runs ``solver`` with these knobs, and stops within a step of the user's interruption.

    It tells both to nodes that ask: see ``solver_of``. at_start(model) gives ``solver.sample`` further arguments, of the run.
    """

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        base = model.inner_model.inner_model
        path = path_of(base.model_sampling) if solver.needs_path else None
        if solver.mixes_sigmas:
            model = Spread(model, len(x))
        with announced(len(sigmas) - 1, callback, disable) as step_started:
            run = replace(solver, sample=partial(solver.sample, **at_start(base))) if at_start else solver
            return run(model, x, sigmas, extra_args, step_started, disable, path=path, **settings)

    sampler = comfy.samplers.KSAMPLER(sample)
    sampler.distillery_solver = solver, settings
    return sampler


def as_sampled(model, latent):
    """A LATENT's samples on the scale that the model works on."""
    if latent["samples"].is_nested:
        raise ValueError("samples holds several latents (video with audio): use another method.")
    return model.process_latent_in(latent["samples"].float())


def function_of(sampler):
    """A SAMPLER as a function of k-diffusion's signature. ValueError for those that are none inside."""
    if getattr(sampler, "sampler_function", None) is None:
        raise ValueError(f"sampler is a {type(sampler).__name__}, which cannot take over a run: choose another in its node.")
    return partial(sampler.sampler_function, **sampler.extra_options)


def solver_of(sampler):
    """(solver, settings) of one of this pack's SAMPLERs, (None, None) of any other."""
    return getattr(sampler, "distillery_solver", (None, None))


@contextmanager
def announced(steps, callback, disable):
    """A callback for solvers that moves a progress bar, stops where the user interrupts, and calls ``callback``."""

    def step_started(state):
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update()
        if callback is not None:
            callback(state)

    with tqdm(total=steps, disable=disable) as bar:
        yield step_started


def timestep_table(sampling):
    """The model's noise levels at its timesteps, (T,), rising, float64. None where it was trained on continuous ones.

    Core gives those a table too, but only to keep its own schedulers running.
    """
    table = getattr(sampling, "sigmas", None)
    if table is None or isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
        return None
    return table.cpu().double()


def token_count(model, latent):
    """How many tokens the network makes of one item of a LATENT. One without a patch size takes each latent pixel as one."""
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError("latent holds several latents (video with audio), which have no one size: use another schedule.")
    ratios = (latent.get(f"downscale_ratio_{axis}") for axis in ("spacial", "temporal"))
    size = comfy.sample.fix_empty_latent_channels(model, samples, *ratios).shape[2:]  # as the sampler will
    patch = getattr(model.model.diffusion_model, "patch_size", 1)
    sides = (patch, patch) if isinstance(patch, int) else tuple(patch)
    sides = (1,) * (len(size) - len(sides)) + sides[-len(size) :]
    return math.prod(-(-length // side) for length, side in zip(size, sides))


def sigmas_for(model, schedule, steps, denoise, settings, latent=None):
    """SIGMAS for a model. Below denoise 1, the last ``steps`` of a longer schedule, as core's schedulers do."""
    if denoise <= 0:
        raise ValueError(f"denoise is {denoise}: nothing would be sampled. Give a share above 0, up to 1.")
    sampling = model.get_model_object("model_sampling")
    supplied = {
        "path": path_of(sampling) if schedule.needs_path else None,
        "table": timestep_table(sampling) if schedule.needs_table else None,
        "tokens": token_count(model, latent) if schedule.needs_tokens and latent is not None else None,
    }
    total = max(steps, int(steps / denoise))
    sigmas = schedule(total, float(sampling.sigma_min), float(sampling.sigma_max), **supplied, **settings)
    return sigmas[-(steps + 1) :]


# MODEL


def with_run_state(model, begin, end=lambda state, completed: None, token=None):
    """A clone of ``model`` and a token, a new one unless given; during each sampling run ``run_state(transformer_options, token)``
    is what ``begin(run)`` returned, where run is a dict of ComfyUI's arguments, of which begin may change the callback. ``end``
    always follows and is told whether the run was completed.
    """
    model, token = model.clone(), object() if token is None else token

    def outer_sample(
        executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None,
        latent_shapes=None,
    ):  # fmt: skip
        guider = executor.class_obj
        check_channels(guider.model_patcher.get_model_object("latent_format"), latent_image, latent_shapes)
        run = {
            "guider": guider, "sampler": sampler, "sigmas": sigmas, "callback": callback, "noise": noise, "seed": seed,
            "latent_image": latent_image, "denoise_mask": denoise_mask, "latent_shapes": latent_shapes,
        }  # fmt: skip
        state = begin(run)
        guider.model_options["transformer_options"].setdefault(RUNS, {})[token] = state
        completed = False
        try:
            samples = executor(
                noise, latent_image, sampler, sigmas, denoise_mask, run["callback"], disable_pbar, seed,
                latent_shapes=latent_shapes,
            )  # fmt: skip
            completed = True
            return samples
        finally:
            end(state, completed)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, token, outer_sample)
    return model, token


def run_state(transformer_options, token):
    return transformer_options[RUNS][token]


def window_of(transformer_options):
    """Which frames this call sees: their numbers, None without context windows."""
    window = transformer_options.get("context_window")
    return None if window is None else tuple(window.index_list)


def recorders(transformer_options):
    """The records that are kept of this run."""
    return [state for state in transformer_options.get(RUNS, {}).values() if isinstance(state, Recorder)]


def with_channel_check(model):
    """A clone that answers a latent of another model's shape with a clear message."""
    return with_run_state(model, lambda run: None)[0]


def with_shift(model, shift):
    """A clone of a flow model whose schedules spend more steps at high noise: sigma -> shift sigma / (1 + (shift - 1) sigma).

    Esser et al. 2024, arXiv:2403.03206, equation 23; what core's ModelSampling nodes do.
    """
    model, sampling = model.clone(), model.get_model_object("model_sampling")
    shifted = type(sampling)(model.model.model_config)
    shifted.set_parameters(shift=shift, multiplier=sampling.multiplier)
    model.add_object_patch("model_sampling", shifted)
    return model


def with_report(model, report):
    """A clone that records each of its runs in ``report`` (measure.report.Report), and changes nothing.

    Peak memory is told on CUDA devices (ROCm among them), whose counter starts afresh with each run.
    """
    device = model.load_device
    counts_memory = device.type == "cuda"

    def begin(run):
        if counts_memory:
            torch.cuda.reset_peak_memory_stats(device)
        context = get_executing_context()
        branches = ("cond", "uncond") if is_plain_cfg(run["guider"]) else ()
        sigmas, items = run["sigmas"].tolist(), len(run["noise"])
        recorder = report.begin(context and context.prompt_id, sigmas, branches, time.perf_counter, items)
        callback = run["callback"]

        def step_started(step, denoised, x, total_steps):
            recorder.step_started(step)
            if callback is not None:
                callback(step, denoised, x, total_steps)

        run["callback"] = step_started
        return recorder

    def predict_noise(executor, x, timestep, model_options, seed):
        run_state(model_options["transformer_options"], token).prediction_started()
        return executor(x, timestep, model_options, seed)

    def apply_model(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        denoised = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        recorder = transformer_options.get(RUNS, {}).get(token)
        if recorder is not None and not transformer_options.get(ANSWERED):  # another MODEL's run calls this one; a cache stood in
            conditions = transformer_options["cond_or_uncond"]
            recorder.called(conditions, len(x) // len(conditions))
        return denoised

    def end(recorder, completed):
        comfy.model_management.synchronize()  # so that the seconds hold all the work of a GPU
        recorder.end(completed, torch.cuda.max_memory_allocated(device) if counts_memory else None)

    model, token = with_run_state(model, begin, end)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, token, predict_noise)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, token, apply_model)
    return model
