"""Training batches: sampling, crops, caches and worker processes."""
