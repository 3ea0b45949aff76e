"""Real trainings with `torchce_cuda`: `make demo`, or `python -m demo` where it is built."""
