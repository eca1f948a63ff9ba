"""A training step of the pack beside one of ComfyUI's own trainer and of a script with PEFT: seconds and memory."""

import statistics
import time
from functools import partial

import torch
from torch import nn

from . import Ratios, Result, Unavailable, hosted

MODEL, SHAPE, RANK = "shapes-dit", (16, 16, 16), 16
BATCHES = (1, 4)
SHORT, LONG = 1, 25  # steps of two runs, whose difference is the cost of a step without that of setting up
TARGETS = "linear"


class Pairs:
    """Latents and noises for reflow, the recipe whose step is that of a LoRA fine-tune: the student's pass and nothing else."""

    def __init__(self, count=16):
        self.clean, self.noises = torch.randn(2, count, *SHAPE, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.clean)

    def __getitem__(self, i):
        return self.clean[i]

    def noise(self, i):
        return self.noises[i]


def distillery(model, conditions, batch):
    """train(steps): as the Distill node trains, on the model's own weights."""
    from comfyui_distillery.distill.batch import Cycle, Data
    from comfyui_distillery.distill.levels import Levels
    from comfyui_distillery.distill.lora import LoraSet
    from comfyui_distillery.distill.objectives import OBJECTIVES
    from comfyui_distillery.distill.recipe import Recipe
    from comfyui_distillery.distill.train import Training
    from comfyui_distillery.nodes import host, host_frozen, host_training
    from comfyui_distillery.nodes.host_conditions import Conditions

    cond = Conditions.of(conditions)
    sampling = model.get_model_object("model_sampling")
    levels = Levels(host.path_of(sampling), host.timestep_table(sampling))

    def train(steps):
        recipe = Recipe("reflow", optimiser={"ema": 0.0}, run={"steps": steps, "batch": batch})
        lora = LoraSet.create(host_frozen.targets_of(model.model.diffusion_model, TARGETS), RANK)
        with host_training.training(model, {"student": lora}, False, (batch, *SHAPE)) as roles:
            data = Data(Pairs(), Cycle(cond, len(cond)), cond, levels, seed=0, size=batch, paired=True, device=model.load_device)
            Training(partial(OBJECTIVES["reflow"], roles, **recipe.knobs), data, lora, recipe).run()

    return train


def core(model, conditions, batch):
    """train(steps): ComfyUI's TrainLoraNode, in float32 as the others, with its default checkpointing: without, Flux's blocks raise."""
    latents = {"samples": Pairs().clean}
    given = {
        "model": model, "latents": latents, "batch_size": batch, "grad_accumulation_steps": 1,
        "learning_rate": 1e-4, "rank": RANK, "optimizer": "AdamW", "loss_function": "MSE", "seed": 0, "training_dtype": "fp32",
        "lora_dtype": "fp32", "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": True,
        "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
    }  # fmt: skip
    node = hosted.node_classes()["TrainLoraNode"]
    given["positive"] = [conditions[i % len(conditions)][0] for i in range(len(Pairs()))]  # one for each latent

    def train(steps):
        with torch.inference_mode():
            node.execute(**{name: [value] for name, value in {**given, "steps": steps}.items()})

    return train


def peft_loop(model, conditions, batch):
    """train(steps): a loop as in a script with PEFT: its layers, autograd keeps what it wants, AdamW.

    Blocks write over what autograd keeps, which scripts' networks do not: they are guarded as the pack guards them.
    """
    import comfy.model_management
    from comfyui_distillery.nodes import host_frozen, host_training
    from comfyui_distillery.nodes.host_blocks import forwards
    from comfyui_distillery.nodes.host_checkpoint import Checkpoints
    from comfyui_distillery.nodes.host_conditions import Conditions, Encoder

    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as missing:
        raise Unavailable(f"the rival is PEFT ({missing}): pip install peft") from missing

    network, encoder = model.model.diffusion_model, Encoder(model.model)
    cond = Conditions.of(conditions)[[i % len(conditions) for i in range(batch)]]

    checkpoints = Checkpoints(recompute=False)

    def kept_right(block, streams, forward, *args, **kwargs):
        return checkpoints.run(block, lambda: host_training.on_copies(streams, forward, *args, **kwargs))

    def train(steps):
        with torch.inference_mode(False), torch.enable_grad(), host_training.differentiable():
            comfy.model_management.load_models_gpu([model])
            host_frozen.make_ordinary(network, model.load_device)
            layers = host_frozen.targets_of(network, TARGETS)
            for layer in layers.values():
                if layer.weight.is_inference():
                    layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
            keeping = {block: partial(kept_right, block, streams) for block, streams in host_training.units_of(network)}
            try:
                inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(layers)), network)
                with forwards(keeping):
                    loop(steps)
            finally:
                for path, layer in layers.items():
                    network.set_submodule(path, layer)

    def loop(steps):
        params = [parameter for name, parameter in network.named_parameters() if "lora_" in name]
        optimiser = torch.optim.AdamW(params, lr=1e-4)
        pairs = Pairs()
        for step in range(steps):
            chosen = [(step * batch + i) % len(pairs) for i in range(batch)]
            clean, noise = pairs.clean[chosen].to(model.load_device), pairs.noises[chosen].to(model.load_device)
            sigma = torch.rand(batch, device=clean.device).clamp(min=0.05)
            level = sigma[:, None, None, None]
            ((_, conds),) = encoder.batches(cond, SHAPE, clean.device)
            options = {"cond_or_uncond": [0], "uuids": [], "sigmas": sigma}
            denoised = model.model.apply_model((1 - level) * clean + level * noise, sigma, transformer_options=options, **conds)
            ((denoised - clean).square().flatten(1).mean(1) / sigma**2).mean().backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimiser.step()
            optimiser.zero_grad()

    return train


def seconds_a_step(train, clock=time.perf_counter):
    """Of the difference between a long and a short run."""
    taken = []
    for steps in (LONG, SHORT):
        began = clock()
        train(steps)
        taken.append(clock() - began)
    return (taken[0] - taken[1]) / (LONG - SHORT)


def peak_bytes(work):
    """The most memory that ``work()`` held at once, beyond what there was before. On the CPU counted from torch's own allocations."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


CONTENDERS = {"distillery": distillery, "core's TrainLoraNode": core, "PEFT loop": peft_loop}


def measure(batches=BATCHES, times=5):
    model, clip, _ = hosted.run("LoadDemoModel", name=MODEL)
    conditions = [hosted.encode(clip, prompt) for prompt in hosted.PROMPTS]
    rows = []
    for batch in batches:
        trains = {name: make(model, conditions, batch) for name, make in CONTENDERS.items()}
        taken = {name: [] for name in trains}
        for _ in range(times):
            for name, train in trains.items():  # interleaved: a machine that slows down slows all
                taken[name].append(seconds_a_step(train))
        peaks = {name: peak_bytes(partial(train, 2)) for name, train in trains.items()}
        for name in trains:
            ratios = [ours / theirs for ours, theirs in zip(taken["distillery"], taken[name])]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            rows.append({
                "batch": batch, "beside": name, "seconds": statistics.median(taken[name]), "ratio": middle, "low": low, "high": high,
                "MiB": peaks[name] / 2**20, "memory ratio": peaks["distillery"] / peaks[name],
            })  # fmt: skip
    return result_of(rows)


def result_of(rows):
    seen = "; ".join(
        f"batch {row['batch']}: {row['ratio']:.2f} times the seconds and {row['memory ratio']:.2f} times the memory of {row['beside']}"
        for row in rows if row["beside"] != "distillery"
    )  # fmt: skip
    return Result(
        f"What does a training step cost, in seconds and in memory, beside ComfyUI's own trainer and a loop with PEFT? {seen}.",
        f"{MODEL}, a LoRA of rank {RANK} on every linear layer, float32, AdamW, no checkpointing but in core's trainer (its default, depth 1, which runs everything twice: without, it raises on this model); ours is reflow, whose step is the "
        "student's pass alone. Ratio: our seconds over theirs, runs interleaved, median and quartiles; seconds of a step are those of a run "
        f"of {LONG} steps less those of one of {SHORT}. Memory: the most that two steps and their setting up held at once, beyond the "
        "loaded model. core's trainer also trains biases and norms, works on a copy of the model, and evaluates each item of a batch "
        "with every caption of it. The PEFT loop is a script's: PEFT's layers on the same weights, and autograd keeps what it wants.",
        rows,
        Ratios(("batch", "beside"), "ratio", "low", "high", goal=1.0),
        drawn=[row for row in rows if row["beside"] != "distillery"],
    )
