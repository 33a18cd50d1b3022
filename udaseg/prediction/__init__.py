"""Masks for images, folders and videos."""
