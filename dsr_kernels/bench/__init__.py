"""Timing one layer, sparse against dense: `dsr bench`."""
