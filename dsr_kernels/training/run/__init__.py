"""All that a run leaves on disk. No other room knows its format."""
