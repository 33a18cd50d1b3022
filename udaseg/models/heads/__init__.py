"""Heads: from a list of feature maps to logits. `head.py` says what each must do.

A new one is a module in this folder with its class as `HEAD`, and the module's name in `HeadName`
of `udaseg/recipe/choices.py`.
"""
