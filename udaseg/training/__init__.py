"""Training: the loop, its step, its stages, and what runs beside it."""
