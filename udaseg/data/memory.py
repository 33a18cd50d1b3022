"""Memory for images: kept when it is freed, as getting it anew can cost more than decoding."""

import numpy as np

_LARGE = 2**25 - 2**16


def keep_freed_memory() -> None:
    """Have the allocator keep what this process frees, up to 64 MB, for the next images.

    glibc learns from the largest piece that was given back how much to keep, up to pieces of 32 MB.
    Where only small images are read, it gives each one's memory back to the system, which has to
    fill it with zeros again, page by page. Other allocators have other ways, and are not harmed.
    """
    np.empty(_LARGE, np.uint8)  # given back at once
