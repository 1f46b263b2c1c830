"""What a user can mend, and what a store does not give: one line that says what is wrong, and the remedy."""


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


class StoreError(OSError):
    """An object store or web server that fails, or refuses: then asking again is of no use.

    url: fit for a log. Its text, and the remedy, are one line without secrets.
    """

    def __init__(self, url: str, why: str, hint: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.url = url
        self.why = why
        self.hint = hint
        self.refused = refused

    def __reduce__(self) -> tuple:
        return _store_error, (self.url, self.why, self.hint, self.refused)


def _store_error(url: str, why: str, hint: str, refused: bool) -> StoreError:
    return StoreError(url, why, hint, refused=refused)
