"""A file lock: one process or rank prepares a dataset while the others wait."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

log = logging.getLogger(__name__)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process holds it.

    The lock is released at the latest when the process ends.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock: preparing twice at once is not safe there
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is preparing %s; waiting for it", path.stem.lstrip("."))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "%s: this file system has no locks; do not prepare twice at once", path.parent
            )
        yield
