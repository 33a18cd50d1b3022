"""Regularizers that contrast regions, prototypes and class distributions."""
