"""Truly sparse training for PyTorch."""
