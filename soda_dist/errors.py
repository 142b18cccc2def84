"""The one exception that a user's mistake becomes."""


class UserError(Exception):
    """A mistake in what the user gave: said in one line, exit code 2, no traceback.

    Args:
        field: the setting, flag, file or URI at fault.
        got: what was given.
        allowed: what is accepted.
        remedy: what to do next.
    """

    def __init__(self, field: str, got: object, allowed: str, remedy: str) -> None:
        super().__init__(field, got, allowed, remedy)
        self.field, self.got, self.allowed, self.remedy = field, got, allowed, remedy

    def __str__(self) -> str:
        return " ".join(f"{self.field}: got {self.got}; allowed: {self.allowed}; {self.remedy}".split())
