"""Data sets: labels, files, preparation, and batches as a function of the step."""
