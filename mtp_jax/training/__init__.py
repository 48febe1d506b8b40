"""The training loop, its jitted step, losses and MWER."""
