"""Starts the installed proxyfw with other constants than its own, where a test would only wait for a deadline."""

import json
import sys
from typing import Any

SNIFF_DEADLINE, IDLE = 1.0, 1.5  # seconds, in place of 5 and 10
IMPATIENT = {
    "proxyfw.connection.SNIFF_DEADLINE": SNIFF_DEADLINE,
    "proxyfw.server_first.SNIFF_DEADLINE": SNIFF_DEADLINE,
    "proxyfw.dnsserve.IDLE": IDLE,
    "proxyfw.edge.upstream.LIFETIME": 1.0,
    "proxyfw.edge.upstream.ATTEMPT": 0.4,
}

_CODE = """\
import importlib, json, sys
for place, value in json.loads(sys.argv[1]).items():
    module, _, name = place.rpartition(".")
    found = importlib.import_module(module)
    assert hasattr(found, name), place
    setattr(found, name, value)
from proxyfw.cli import main
del sys.argv[:2]
sys.exit(main())
"""


def with_constants(constants: dict[str, Any]) -> list[str]:
    """What to give Lab.start_service: module and name of each constant, to its value."""
    return [sys.executable, "-c", _CODE, json.dumps(constants)]
