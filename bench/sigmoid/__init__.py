"""`python -m bench sigmoid`: losses of labels that do not exclude each other."""
