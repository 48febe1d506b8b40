"""A trained model bound to its parameters, tokenizer and devices, ready to decode."""
