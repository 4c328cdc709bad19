"""Tests on a GPU: `make test-gpu`. Skipped as a whole, with one reason, where there is none.

DSR_TEST_DEVICE=cpu runs all of them but those about CUDA itself on the CPU, to try the tests.
"""
