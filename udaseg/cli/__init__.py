"""The command line: words in, exit codes out. Imports nothing heavy, and only it exits."""

from udaseg.cli.app import app
from udaseg.cli.exits import main

__all__ = ["app", "main"]
