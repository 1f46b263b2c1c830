"""What a user can mend: one line that says what is wrong, and the remedy."""


class UserError(Exception):
    """A mistake in the user's input or environment; shown without a traceback, exit code 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple:
        return UserError, (self.message, self.hint)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
