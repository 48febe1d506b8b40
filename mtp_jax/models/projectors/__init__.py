"""Projectors: an audio encoder's hidden states in, rows of a decoder's prompt out."""
