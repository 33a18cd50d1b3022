"""Processes of our own, started from any program."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Start processes in this context that do not import the user's program.

    A spawned process imports the main module first. In a script without `if __name__ ==
    "__main__"` it would run the whole script again. Our processes need nothing of it.
    """
    main = vars(sys.modules["__main__"])
    kept: dict[str, object] = {
        name: main[name] for name in ("__file__", "__spec__") if name in main
    }
    main.update(dict.fromkeys(kept))  # None: not in a file, not in a package
    try:
        yield
    finally:
        main.update(kept)
