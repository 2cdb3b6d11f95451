"""What is in the state folder. By itself, so that a command that looks there need not load the whole service."""

CONTROL_SOCKET = "control.sock"
LOG_FILE = "log.sqlite"
PIN_FILE = "pins.sqlite"
FEED_FOLDER = "feeds"
"""Of lists that were fetched."""
