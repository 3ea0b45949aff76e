"""`python -m bench small`: calls whose cost is the call."""
