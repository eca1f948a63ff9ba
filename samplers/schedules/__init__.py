"""Every schedule, by name. Each file declares its own."""

from . import cosine, distilled, edm_rho, resolution, sigmoid, timesteps, uniform_lambda
from .schedule import Schedule

__all__ = ["SCHEDULES", "Schedule"]

SCHEDULES = (
    uniform_lambda.SCHEDULES | edm_rho.SCHEDULES | cosine.SCHEDULES | sigmoid.SCHEDULES | timesteps.SCHEDULES
    | resolution.SCHEDULES | distilled.SCHEDULES
)  # fmt: skip
