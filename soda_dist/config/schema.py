"""Configuration of a run: the sections, and checks of their combination."""

from pydantic import model_validator

from soda_dist.config.checks import CHECKS
from soda_dist.config.problems import ProblemError
from soda_dist.config.sections import Sections


class RunConfig(Sections):
    """Configuration of a run."""

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        for check in CHECKS:
            for problem in check(self):
                raise ProblemError(problem)
        return self
