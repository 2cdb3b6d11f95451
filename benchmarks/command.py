"""What the commands of the benchmark have in common."""

import argparse
import signal
from types import FrameType
from typing import NoReturn


def positive(text: str) -> int:
    """An option's number."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """For SIGINT and SIGTERM: the first signal begins the cleaning up, and no second one may cut it short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
