"""The command line: parses arguments, calls `udaseg.commands` and sets the exit code.

It imports nothing heavy, and no other package exits the process.
"""

from udaseg.cli.app import app
from udaseg.cli.exits import main

__all__ = ["app", "main"]
