"""One file for each objective: what a training step computes from a batch."""
