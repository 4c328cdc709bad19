"""The fallback for GPUs where the package was built without nvcc."""
