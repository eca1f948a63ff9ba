"""Every solver, by name. Each file declares its own."""

from . import (
    auto,
    bdia,
    ctm_gamma,
    deis,
    dlg,
    dpm_solver,
    edict,
    edm_heun,
    exp_rk,
    gaussian_teleport,
    gradient_estimation,
    interpolant_sde,
    lambda_ddim,
    momentum,
    paradigms,
    pc_langevin,
    pcm,
    per_step,
    ping_pong,
    restart,
    sa_solver,
    scm,
    tcd,
    time_shift,
    unipc,
)
from .solver import Solver

__all__ = ["SOLVERS", "Solver"]

FILES = (
    auto, momentum, gradient_estimation, lambda_ddim, dpm_solver, deis, unipc, exp_rk, per_step,
    edm_heun, sa_solver, pc_langevin, interpolant_sde, dlg, restart, ctm_gamma,
    paradigms, time_shift, gaussian_teleport, bdia, edict, tcd, pcm, scm, ping_pong,
)  # fmt: skip
SOLVERS = {key: solver for file in FILES for key, solver in file.SOLVERS.items()}
