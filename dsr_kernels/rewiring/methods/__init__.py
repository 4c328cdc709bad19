"""One file a method, and `layerwise`, the base of those that keep the budget of each layer."""
