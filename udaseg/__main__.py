"""Entry point of `python -m udaseg`, which is also what torchrun starts."""

import logging
import os
import sys

from udaseg.cli.main import main


def _end_now(code: object) -> None:
    """End one of several processes without Python's teardown.

    All files are written by then. During the teardown, threads of the process group that stop in
    the wrong order can abort the process, and torchrun would report a finished run as failed.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    try:
        main()
    except SystemExit as stop:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _end_now(stop.code)
        raise
