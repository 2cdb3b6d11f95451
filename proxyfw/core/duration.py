"""Durations as they are written: `45s`, `10m`, `2h`, `30d`."""

import re

_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

DURATION_FIX = "write a number and s, m, h or d, as in 30d"


def parse_duration(text: str) -> int | None:
    """Seconds; None where it is no duration."""
    match = _DURATION.fullmatch(text)
    return int(match[1]) * _SECONDS[match[2]] if match else None
