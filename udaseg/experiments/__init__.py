"""Several runs: seeds, sweeps, and tables that compare them."""
