"""Speech encoders: features in, hidden states out."""
