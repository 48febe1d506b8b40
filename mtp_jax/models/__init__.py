"""Flax (linen) modules with ``params`` as their only collection: init and apply are pure."""
