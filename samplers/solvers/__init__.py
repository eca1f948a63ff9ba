"""Every solver, by name. Each file declares its own."""

from . import lambda_ddim, momentum
from .solver import Solver

__all__ = ["SOLVERS", "Solver"]

SOLVERS = momentum.SOLVERS | lambda_ddim.SOLVERS
