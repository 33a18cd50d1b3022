"""Checkpoints chosen without target labels, and calibrated confidence."""
