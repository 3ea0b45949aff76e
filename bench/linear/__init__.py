"""`python -m bench linear`: the loss of hidden states and a head, whose logits may never exist."""
