"""What ends the installer with a message, and what it tells meanwhile."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818 - as a person would say it
    """It cannot be done; nothing was changed, or it was changed back."""

    def __init__(self, message: str, hint: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"fedtide: {text}", flush=True)
