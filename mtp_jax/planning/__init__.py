"""What a program costs on a TPU, from what its compiler makes of it: no TPU takes part."""
