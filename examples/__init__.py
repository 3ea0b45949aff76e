"""Short programs, each about one question; `python -m examples.digits` runs the first."""
