"""Tests mirror the package's folders; what they share lies in tests/helpers."""
