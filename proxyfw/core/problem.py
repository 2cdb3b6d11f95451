"""A mistake in something the user wrote: where, what, and what to write instead."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Where:
    """A line of a file. Lines count from 1; 0 means the file as a whole."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning. `fix` completes the message: what to write instead."""

    where: Where
    message: str
    fix: str = ""
    warning: bool = False

    def __str__(self) -> str:
        kind = "warning" if self.warning else "error"
        return f"{self.where}: {kind}: {self.message}" + (f"; {self.fix}" if self.fix else "")
