"""The parts of measure_gpu.py."""
