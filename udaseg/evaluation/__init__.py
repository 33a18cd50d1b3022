"""Evaluate networks: confusion matrices, protocols, and inference at full resolution."""
