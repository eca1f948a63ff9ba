"""Our solvers beside core's at equal model evaluations, on the bundled models and on problems with exact answers."""

from dataclasses import replace

from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers import SOLVERS

from . import Lines, Result, hosted
from .problems import as_task
from .timing import relative_error

BUDGETS = (4, 5, 6, 8, 10, 15, 20, 30)  # model evaluations
CORE = ("dpmpp_2m", "uni_pc_bh2", "res_multistep", "deis", "ipndm", "er_sde", "euler", "heun")
GUIDANCE = (1.0, 5.0)
REFERENCE = 500  # steps of heun
DRAWN = 3  # of ours at each budget
GOAL = 0.7  # error of our best over that of core's


def core(name):
    import comfy.samplers

    if name == "er_sde":  # without noise it is an ODE solver
        return comfy.samplers.ksampler(name, {"s_noise": 0.0, "noise_scaler": lambda sigma: sigma, "max_stage": 3})
    return hosted.core(name)


def candidates():
    """{name: (SAMPLER, its evaluations in so many steps)}. Ours run with their default knobs."""
    theirs = {f"core {name}": (core(name), lambda steps: steps) for name in CORE}
    theirs["core heun"] = (core("heun"), lambda steps: 2 * steps - 1)  # the last step is one of Euler's
    ours = {name: solver for name, solver in SOLVERS.items() if not solver.stochastic and solver.family != "turbo"}
    return theirs | {name: (hosted.method(name), solver.count) for name, solver in ours.items()}


def most_steps(count, budget):
    """The most steps whose evaluations fit the budget, or None."""
    return max((steps for steps in range(1, budget + 1) if count(steps) <= budget), default=None)


def problems(reference, pictures):
    """(name, task, expected latent) of every problem at every guidance scale."""
    for scale in GUIDANCE:
        for path in ("eps", "flow"):
            yield f"mixture, {path}, guidance {scale:g}", *as_task(Path(path), scale)
        for name in ("shapes-unet", "shapes-dit"):
            task = replace(hosted.bundled(name, pictures), cfg=scale)
            yield f"{name}, guidance {scale:g}", task, task.sample(hosted.core("heun"), task.sigmas(reference))


def sweep(problem, task, expected, budgets):
    """Rows of one problem: the most steps of each solver that fit each budget."""
    rows = []
    for name, (sampler, count) in candidates().items():
        for budget in budgets:
            steps = most_steps(count, budget)
            if steps:
                latent, evaluations = task.counted(sampler, task.sigmas(steps))
                error = relative_error(latent, expected)
                rows.append({"problem": problem, "solver": name, "budget": budget, "evaluations": evaluations, "error": error})
    return rows


def ranked(rows, budget):
    """(ours, core's) rows of one problem at one budget, the best first."""
    rows = sorted((row for row in rows if row["budget"] == budget), key=lambda row: row["error"])
    return [row for row in rows if not row["solver"].startswith("core ")], [row for row in rows if row["solver"].startswith("core ")]


def best(rows, budgets):
    """One line a budget: the best of ours beside the best of core's. And the rows worth drawing."""
    table, drawn = [], {row["solver"] for row in rows if row["solver"].startswith("core ")}
    for budget in budgets:
        ours, theirs = ranked(rows, budget)
        drawn |= {row["solver"] for row in ours[:DRAWN]}
        table.append({
            "problem": rows[0]["problem"], "evaluations": budget,
            "best of ours": ours[0]["solver"], "its error": ours[0]["error"],
            "best of core": theirs[0]["solver"].removeprefix("core "), "error of that": theirs[0]["error"],
            "ratio": ours[0]["error"] / theirs[0]["error"],
        })  # fmt: skip
    return table, [row for row in rows if row["solver"] in drawn]


def measure(budgets=BUDGETS, reference=REFERENCE, pictures=2):
    found = [sweep(*problem, budgets) for problem in problems(reference, pictures)]
    return result_of(found, budgets, reference, pictures)


def result_of(found, budgets, reference, pictures):
    """found: the rows of each problem."""
    rows, table, drawn = [], [], []
    for part in found:
        lines, worth_drawing = best(part, budgets)
        rows, table, drawn = rows + part, table + lines, drawn + worth_drawing
    few = [line["ratio"] for line in table if 5 <= line["evaluations"] <= 10]
    reached = f"{sum(ratio <= GOAL for ratio in few)} of the {len(few)} lines from 5 to 10 evaluations reach the goal"
    better = f"{sum(ratio < 1 for ratio in few)} of them are better than core's best"
    return Result(
        "How far from the exact solution of the sampling ODE does each solver end, at equal model evaluations? Goal: from 5 to 10 "
        f"evaluations the best of ours has at most {GOAL} times the error of core's best. {reached}; {better}.",
        f"Error: norm of the difference over norm of the reference, over the whole batch. The bundled models: {pictures} prompts, "
        f"against {reference} steps of core heun; an evaluation is one call with both conditions. mixture: three Gaussians in two "
        "dimensions, guided towards two of them, 64 starts, against the exact end points (Runge-Kutta 4, 3,000 steps). Core's simple "
        "schedule, karras on the eps mixture; all knobs at their defaults, at which lambda_ddim is Euler; core's er_sde without "
        f"noise. The picture shows core's and the {DRAWN} best of ours at each budget, the JSON file all. A small error is nearness "
        "to the ODE's solution, which is not the same as a good picture.",
        rows,
        Lines("evaluations", "error", "solver", "problem"),
        table,
        drawn,
    )
