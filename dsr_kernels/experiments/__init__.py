"""`dsr experiment`: grids of training runs (methods x sparsities x seeds) and their results."""
