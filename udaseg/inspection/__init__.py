"""Finished runs: details, verification, and the HTML report."""
