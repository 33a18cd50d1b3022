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
    main = sys.modules["__main__"]
    kept: dict[str, object] = {
        name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)
    }
    main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(kept)
