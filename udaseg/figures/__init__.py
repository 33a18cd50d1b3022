"""Figures of trained networks: features in the plane, distances of classes, grids of masks."""
