"""Benchmarks of torchce_cuda: `python -m bench --help`. Protocol and results: bench/README.md."""
