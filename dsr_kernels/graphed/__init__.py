"""A training step that is replayed from a CUDA graph; `dsr_kernels.cuda` is its public side."""
