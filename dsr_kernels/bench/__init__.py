"""`dsr bench` and the benchmarks' core: they time one layer, sparse against dense."""
