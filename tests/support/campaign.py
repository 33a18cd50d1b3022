"""What campaigns of faults share."""

import sys


def tell(text):
    """Print a line of figures between pytest's dots."""
    sys.stdout.write(f"\n{text}\n")
