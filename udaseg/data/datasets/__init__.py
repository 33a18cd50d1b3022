"""Declared data sets, their index, and the built-in catalog."""
