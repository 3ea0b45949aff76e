"""`python -m bench training`: whole training steps of language models, their time and memory."""
