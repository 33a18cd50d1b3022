"""Heads: from a list of feature maps to logits. `head.py` says what each must do."""
