"""Whole models, ours beside every dense rival: training steps, inference, memory of processes."""
