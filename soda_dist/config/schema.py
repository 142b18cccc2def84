"""The configuration of a run: the sections, and the checks that they fit together."""

from pydantic import model_validator

from soda_dist.config.checks import CHECKS
from soda_dist.config.problems import ProblemError
from soda_dist.config.sections import Sections


class RunConfig(Sections):
    """A whole run. Section names are the fields; `a.b=value` on the command line overrides one leaf."""

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        for check in CHECKS:
            for problem in check(self):
                raise ProblemError(problem)
        return self
