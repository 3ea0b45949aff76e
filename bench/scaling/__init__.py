"""`python -m bench scaling` and `linear-scaling`: how time and memory grow with the problem."""
