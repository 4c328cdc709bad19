"""Training by recipe: data, the loop, checkpoints and the report behind ``dsr train``."""
