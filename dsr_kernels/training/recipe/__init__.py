"""Recipes: what a run is to do, read, checked and completed."""
