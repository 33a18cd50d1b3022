"""Print what one training step of each method asks of a GPU, as a table; no GPU is needed.

    python -m tests.bench.bench_device_step [METHOD...]

It counts launches, waits and collectives, and takes no time: see tests/support/step_counts.py.
"""

import argparse
import sys

from tests.support import step_counts

COLUMNS = (
    *("outside", "network", "waits", "pageable copies"),
    *("sums of scalars", "other collectives", "waits in norms", "GiB"),
)


def row(case: step_counts.Case) -> list[str]:
    """Return the cells of a method; those about ranks are of one of two."""
    gpu, over_ranks = (step_counts.count_step(case, ranks=ranks) for ranks in (1, 2))
    numbers = [
        gpu.total("operator", network=False),
        gpu.total("operator", network=True),
        gpu.total("read") + gpu.total("values decide"),
        gpu.total("pageable copy"),
        over_ranks.total("scalars", network=False),
        over_ranks.total("collective", network=False),
        over_ranks.total("values decide", network=True),
    ]
    peak = step_counts.peak_bytes(case) / 2**30
    return [*(f"{number:,}" for number in numbers), f"{peak:.2f}"]


def main() -> None:
    """Print the table of all methods, or of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("method", nargs="*", help="such as rccr or spcl/contrast")
    names = parser.parse_args().method
    out = sys.stdout.write
    out(f"| method | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}\n")
    for case in step_counts.all_cases():
        if not names or case.name in names:
            out(f"| {case.name} | {' | '.join(row(case))} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
