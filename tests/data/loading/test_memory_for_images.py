"""Freed memory is reused, not requested from the system again; measured by page faults."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from udaseg.data.files.images import keep_freed_memory
if {kept}:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(40):
    if turn == 20:
        before = faults()
    held = [np.ones(size, np.uint8) for size in (1_300_000, 2_700_000, 2_700_000)]
    del held
print(faults() - before)
"""


def _faults(kept):
    code = FAULTS.format(kept=kept)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc learns so")
def test_images_of_one_size_take_no_new_pages_after_the_first():
    assert _faults(kept=True) < 500 < _faults(kept=False)
