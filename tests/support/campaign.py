"""Share helpers between fault campaigns."""

import sys


def tell(text):
    """Print a line of results between pytest's dots."""
    sys.stdout.write(f"\n{text}\n")
