"""Evaluate networks: confusion matrices, protocols, scores and submissions."""
