"""Every solver, by name. Each file declares its own."""

from . import (
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
    per_step,
    restart,
    sa_solver,
    time_shift,
    unipc,
)
from .solver import Solver

__all__ = ["SOLVERS", "Solver"]

SOLVERS = momentum.SOLVERS | lambda_ddim.SOLVERS | bdia.SOLVERS | edict.SOLVERS | dpm_solver.SOLVERS | deis.SOLVERS | unipc.SOLVERS | exp_rk.SOLVERS
SOLVERS |= paradigms.SOLVERS | time_shift.SOLVERS | gaussian_teleport.SOLVERS | gradient_estimation.SOLVERS | per_step.SOLVERS
SOLVERS |= edm_heun.SOLVERS | sa_solver.SOLVERS | pc_langevin.SOLVERS | interpolant_sde.SOLVERS | dlg.SOLVERS | restart.SOLVERS
SOLVERS |= ctm_gamma.SOLVERS
