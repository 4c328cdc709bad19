"""Convolutions with batch norm, ReLU and additions inside: checks, derivatives, meaning."""
