"""Exceptions that are shown as one line: a user's mistake, a fault of the machine."""


class UserError(Exception):
    """A mistake in the user's input, shown as one line without traceback; exit code 2.

    Args:
        field: the setting, flag, file or URI at fault.
        got: the given value.
        allowed: the accepted values.
        remedy: the next step, as an imperative.
    """

    def __init__(self, field: str, got: object, allowed: str, remedy: str) -> None:
        super().__init__(field, got, allowed, remedy)
        self.field, self.got, self.allowed, self.remedy = field, got, allowed, remedy

    def __str__(self) -> str:
        line = " ".join(f"{self.field}: got {self.got}; allowed: {self.allowed}; {self.remedy}".split())
        # Values come from files: control characters would steer a terminal, and lone surrogates cannot be printed.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class DivergedError(UserError):
    """Training whose loss, gradient or state is not finite, beyond what `train.guard` allows; shown as `UserError`."""


class MachineError(Exception):
    """A fault of the machine that outlasted a retry, shown as one line without traceback; exit code 1."""
