"""One writer at a time: what another process or rank prepares is waited for, not done twice."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

log = logging.getLogger(__name__)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; waits while another process does. It goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock; there, do not prepare twice at once
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process prepares %s; waiting for it", path.stem.lstrip("."))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("%s: this disk has no locks; do not prepare twice at once", path.parent)
        yield
