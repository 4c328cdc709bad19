"""Grids of training runs (methods x sparsities x seeds) and what they show: `dsr experiment`."""
