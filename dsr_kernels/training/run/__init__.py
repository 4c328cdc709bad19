"""All that a run leaves on disk, and the only place that knows its format."""
