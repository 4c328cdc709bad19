"""Data parallelism by gloo's processes on one machine, sparse and dense."""
