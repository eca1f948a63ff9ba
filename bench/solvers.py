"""Our solvers beside core's at equal model evaluations, on the bundled model and on problems with exact answers."""

from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers import SOLVERS

from . import Lines, Result, hosted
from .problems import as_task, mixture
from .timing import relative_error

BUDGETS = (4, 6, 8, 10, 12, 16, 20)  # model evaluations
CORE = ("euler", "heun", "dpmpp_2m", "ipndm", "deis", "res_multistep", "uni_pc", "lms")
REFERENCE = 200  # steps of heun


def candidates():
    """{name: (SAMPLER, its evaluations in so many steps)}. Ours run with their default knobs."""
    core = {f"core {name}": (hosted.core(name), lambda steps: steps) for name in CORE}
    core["core heun"] = (hosted.core("heun"), lambda steps: 2 * steps - 1)  # the last step is one of Euler's
    return core | {name: (hosted.method(name), solver.count) for name, solver in SOLVERS.items() if not solver.stochastic}


def most_steps(count, budget):
    return max((steps for steps in range(1, budget + 1) if count(steps) <= budget), default=None)


def sweep(problem, task, expected, budgets):
    """Rows of one problem: the most steps of each solver that fit each budget."""
    rows = []
    for name, (sampler, count) in candidates().items():
        for budget in budgets:
            latent, evaluations = task.counted(sampler, task.sigmas(most_steps(count, budget)))
            error = relative_error(latent, expected)
            rows.append({"problem": problem, "solver": name, "budget": budget, "evaluations": evaluations, "error": error})
    return rows


def measure(budgets=BUDGETS, reference=REFERENCE, pictures=4):
    bundled = hosted.bundled(pictures=pictures)
    tasks = {"shapes-dit": (bundled, bundled.sample(hosted.core("heun"), bundled.sigmas(reference)))}
    tasks |= {f"mixture, {path}": as_task(mixture(Path(path))) for path in ("eps", "flow")}
    rows = [row for problem, (task, expected) in tasks.items() for row in sweep(problem, task, expected, budgets)]
    table = {}
    for row in rows:
        line = table.setdefault((row["problem"], row["solver"]), {"problem": row["problem"], "solver": row["solver"]})
        line[str(row["budget"])] = row["error"]
    return Result(
        "How far from the exact solution of the sampling ODE does each solver end, at equal model evaluations?",
        f"Error: norm of the difference over norm of the reference, over the whole batch. shapes-dit: {pictures} prompts, CFG 4, "
        f"against {reference} steps of core heun; an evaluation is one call with both conditions. mixture: three Gaussians in two "
        "dimensions, 64 starts, without guidance, against the exact end points (Runge-Kutta 4, 3,000 steps). Core's simple "
        "schedule, karras on the eps problem; all knobs at their defaults, at which lambda_ddim is Euler. Columns are "
        "evaluations, of which heun takes one fewer. A small error is nearness to the ODE's solution, which is not the same as a "
        "good picture.",
        rows,
        Lines("evaluations", "error", "solver", "problem"),
        list(table.values()),
    )
