"""What distillation does to pictures: are captions still drawn right in few steps, and is the set of pictures as good?"""

from . import Lines, Result, Unavailable, hosted
from .examination import Examination

MODELS = ("shapes-dit", "shapes-unet")
STUDENTS = {"shapes-dit": "bundled: shapes-turbo-dit", "shapes-unet": "bundled: shapes-turbo-unet"}
GUIDANCE_FREE = {"shapes-unet": "bundled: shapes-turbo-unet-guidance-free"}
STEPS, TEACHER_STEPS, SCALE = (1, 2, 4, 8), 25, 4.0


def examined(name, student, count, batch=20, steps=STEPS, teacher=True, guidance_free=None):
    """Rows of one model: the teacher at 25 steps, and in few, guided; the student, a MODEL, in few without guidance.

    guidance_free: a MODEL that takes the teacher's steps without guidance, to be examined too, and beside it the model itself.
    """
    exam, rows = Examination(name, count, batch), []

    def add(by, model, steps, scale):
        exam.steps = steps
        figures, _ = exam.sit(model, scale)
        evaluations = steps * (1 if scale == 1 else 2)
        rows.append({"model": name, "by": by, "steps": steps, "evaluations": evaluations, **figures})
        del rows[-1]["saved"]

    if teacher:
        add("teacher", exam.bundled.model, TEACHER_STEPS, SCALE)
        for few in steps:
            add("undistilled", exam.bundled.model, few, SCALE)
    for few in steps:
        add("student", student, few, 1.0)
    if guidance_free is not None:
        add("guidance-free", guidance_free, TEACHER_STEPS, 1.0)
        add("without guidance", exam.bundled.model, TEACHER_STEPS, 1.0)
    return rows


def measure(count=200):
    rows = []
    for name in MODELS:
        model, _, _ = hosted.run("LoadDemoModel", name=name)
        try:
            student, guidance_free = (
                lora and hosted.run("LoadTurboLora", model=model, lora=lora, strength=1.0)[0]
                for lora in (STUDENTS[name], GUIDANCE_FREE.get(name))
            )
        except ValueError as missing:
            raise Unavailable(str(missing)) from missing
        rows += examined(name, student, count, guidance_free=guidance_free)
    return result_of(rows, count)


def result_of(rows, count):
    seen = []
    for name in dict.fromkeys(row["model"] for row in rows):
        teacher, four = (next(row for row in rows if row["model"] == name and (row["by"], row["steps"]) == which)
                         for which in (("teacher", TEACHER_STEPS), ("student", 4)))  # fmt: skip
        seen.append(
            f"{name}: {four['right']:.1%} of captions right in {four['evaluations']} evaluations, the teacher {teacher['right']:.1%} in "
            f"{teacher['evaluations']}; FID {four['FID'] / teacher['FID']:.2f} times the teacher's"
        )
        for row in (row for row in rows if (row["model"], row["by"]) == (name, "guidance-free")):
            seen[-1] += f"; taught to do without guidance, {row['right']:.1%} in {row['evaluations']}"
    return Result(
        f"How good are pictures in 1, 2, 4 and 8 steps with the turbo LoRAs that come with the pack? {'; '.join(seen)}.",
        f"{count} fresh captions that name everything, the same captions and seeds for each; core's Euler at even steps; teacher and "
        f"undistilled model at guidance {SCALE:g}, two evaluations a step; the student at 1, one evaluation a step; so are guidance-free, the model with a "
        "LoRA of that goal, and without guidance, the model itself. Right: the judge reads every attribute of every object as the caption says. FID and KID: on the judge's features, to twice as many fresh drawings.",
        rows,
        Lines("evaluations", "FID", "by", "model"),
    )
