"""Allocator setup: keep freed image memory, as new memory can cost more than decoding."""

import numpy as np

_LARGE = 2**25 - 2**16


def keep_freed_memory() -> None:
    """Make the allocator keep up to 64 MB of freed memory for the next images.

    glibc derives how much to keep from the largest block freed so far, for blocks up to 32 MB. If
    only small images are read, it returns the memory of each one to the system, which has to fill
    it with zeros again, page by page. Other allocators are not affected.
    """
    np.empty(_LARGE, np.uint8)  # freed at once
