"""Recipes: what a run is to do. They are read, checked and completed here."""
