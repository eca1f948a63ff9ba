"""The node that shows what a few-step student makes, beside its teacher."""

import json

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from ..measure import step_grid
from ..measure.report import Report
from . import host, host_turbo
from .display import draw_and_show

MOST = 16  # numbers of steps


class CompareSteps(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_CompareSteps",
            display_name="Compare Steps",
            category="distillery/distillation",
            description="A student in 1, 2, 4 and 8 steps beside its teacher, from the same noise: pictures, costs and distances.",
            search_aliases=["turbo", "student", "teacher", "few-step", "grid", "side by side", "steps comparison"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The teacher: the model without the turbo LoRA."),
                io.MultiType.Input(
                    "student", types=[host_turbo.TurboLoraType, io.Model],
                    tooltip="A turbo LoRA, which brings its sampler, noise levels and CFG; or a MODEL, which is sampled as the teacher is, "
                    "at student_cfg.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompt, the same for all."),
                io.Conditioning.Input("negative", tooltip="What the teacher is guided away from. At CFG 1 it is not used."),
                io.Latent.Input("latent", tooltip="An empty latent: its size, and how many pictures to make of each."),
                io.Vae.Input("vae", tooltip="To decode the pictures with."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="Of the noise, the same for all."),
                io.String.Input("steps", default="1, 2, 4, 8", tooltip="The student's numbers of steps, with commas between."),
                io.Int.Input("teacher_steps", default=25, min=1, max=1000, tooltip="Steps of the teacher."),
                io.Float.Input("teacher_cfg", default=4.0, min=0.0, max=100.0, step=0.1, tooltip="CFG of the teacher. Neutral: 1."),
                io.Boolean.Input(
                    "undistilled", default=True,
                    tooltip="Show the teacher in as few steps too: what you would get without the student. Neutral: off.",
                ),
                io.Float.Input(
                    "student_cfg", default=1.0, min=0.0, max=100.0, step=0.1, advanced=True,
                    tooltip="CFG of a student that comes as a MODEL. Neutral: 1. A turbo LoRA brings its own.",
                ),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.SAMPLER_NAMES, default="euler", advanced=True,
                    tooltip="Sampler of the teacher, and of a student that comes as a MODEL.",
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="simple", advanced=True,
                    tooltip="Noise levels of the teacher, and of the student where the LoRA records none for so many steps.",
                ),
                io.Int.Input("rows", default=2, min=1, max=16, advanced=True, tooltip="How many of the batch to draw. All are measured."),
            ],
            outputs=[
                io.Image.Output("grid", display_name="grid", tooltip="The pictures with their labels. Needs matplotlib."),
                io.String.Output("text", display_name="text", tooltip="Steps, evaluations, seconds and distances, in columns."),
                io.String.Output("json", display_name="json", tooltip="The same numbers as JSON."),
                io.Image.Output("images", display_name="images", tooltip="The pictures alone: the teacher's, then the student's by steps."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, student, positive, negative, latent, vae, seed, steps, teacher_steps, teacher_cfg, undistilled, student_cfg,
        sampler_name, scheduler, rows,
    ) -> io.NodeOutput:  # fmt: skip
        counts = counts_of(steps)
        if latent["samples"].is_nested:
            raise ValueError("latent holds several latents (video with audio): connect one.")
        draw = Draw(positive, negative, latent, vae, seed)

        def plainly(count):
            return comfy.samplers.sampler_object(sampler_name), levels(model, scheduler, count)

        runs = [("teacher", model, teacher_steps, teacher_cfg, *plainly(teacher_steps))]
        if not isinstance(student, comfy.model_patcher.ModelPatcher):
            patched, profile = host_turbo.applied(model, student), student.profile
            runs += [("student", patched, count, profile.cfg, *as_recorded(profile, model, scheduler, count)) for count in counts]
        else:
            runs += [("student", student, count, student_cfg, *plainly(count)) for count in counts]
        if undistilled:
            runs += [("undistilled", model, count, teacher_cfg, *plainly(count)) for count in counts]
        made, warm = [], []
        for run in runs:
            if run[1] not in warm:  # the first run of a model loads it and warms up
                draw("", run[1], 1, run[3], run[4], run[5][-2:])
                warm.append(run[1])
            made.append(draw(*run))
        teacher, *others = made
        numbers = step_grid.table(teacher, others)
        text = step_grid.in_words(numbers)
        grid, shown = draw_and_show(cls, text, step_grid.draw, teacher, others, rows, steps=[numbers])
        pictures = torch.cat([each.pictures for each in made if each.by != "undistilled"])
        return io.NodeOutput(grid, text, json.dumps(numbers), pictures, ui=shown)


def counts_of(text):
    """Numbers of steps, as they were written. ValueError that says what is wrong."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not 1 <= len(words) <= MOST:
        raise ValueError(f"steps holds {len(words)} numbers: give 1 to {MOST}, with commas between, such as 1, 2, 4, 8.")
    for word in words:
        if not word.isdecimal() or not 1 <= int(word) <= 1000:
            raise ValueError(f"steps holds {word!r}: each must be a whole number from 1 to 1000.")
    return [int(word) for word in words]


def levels(model, scheduler, count):
    """SIGMAS by one of core's schedulers."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, count)


def as_recorded(profile, model, scheduler, count):
    """(SAMPLER, SIGMAS) for so many steps: the recorded ones for the number that the LoRA was made for, else the scheduler's."""
    sigmas = torch.tensor(profile.sigmas) if count == profile.steps else levels(model, scheduler, count)
    return host_turbo.sampler_named(profile.sampler, profile.knobs), sigmas


class Draw:
    """Samples and decodes from the same noise again and again."""

    def __init__(self, positive, negative, latent, vae, seed):
        self.positive, self.negative, self.latent, self.vae, self.seed = positive, negative, latent, vae, seed

    def __call__(self, by, model, steps, cfg, sampler, sigmas):
        """step_grid.Sampled."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        report = Report()
        watched = host.with_report(model, report)
        ratios = (self.latent.get(f"downscale_ratio_{axis}") for axis in ("spacial", "temporal"))
        empty = comfy.sample.fix_empty_latent_channels(watched, self.latent["samples"], *ratios)
        noise = comfy.sample.prepare_noise(empty, self.seed, self.latent.get("batch_index"))
        samples = comfy.sample.sample_custom(
            watched, noise, cfg, sampler, sigmas, self.positive, self.negative, empty, noise_mask=self.latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(watched, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=self.seed,
        )  # fmt: skip
        pictures = self.vae.decode(samples)
        totals = report.runs[-1]["totals"]
        return step_grid.Sampled(
            by, steps, cfg, totals["evaluations"], totals["seconds"], samples, pictures.reshape(-1, *pictures.shape[-3:])
        )


NODES = [CompareSteps]
