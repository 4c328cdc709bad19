"""The calls of the CUDA kernels, and what they are told: passes, tilings, lists of non-zeros."""
