"""The run folder: checkpoints, status, metrics, calibration."""
