"""What a row says of an error."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import NamedTuple


class KnownError(Exception):
    """What has failed once in a run, for a reason that the rows of all its cells tell: it is not tried again."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.status)
        self.failure = failure


class Failure(NamedTuple):
    """An error as a row holds it: in a line, where it arose, and its traceback with the names of the files alone, as
    where they lie is the machine's business.
    """

    status: str
    where: str | None = None
    traceback: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return what is to be said of an error."""
        if isinstance(error, KnownError):
            return error.failure
        told = traceback.TracebackException.from_exception(error)
        one: traceback.TracebackException | None = told
        while one is not None:
            for frame in one.stack:
                frame.filename = Path(frame.filename).name
            one = one.__cause__ or one.__context__
        last = told.stack[-1]
        status = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(status, f"{last.filename}:{last.lineno} in {last.name}", "".join(told.format()))
