"""Other programs that get the metrics and previews of a run."""
