"""Autoregressive decoders with a key-value cache."""
