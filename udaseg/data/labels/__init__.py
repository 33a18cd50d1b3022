"""Classes, label tables and label formats."""
