"""Strategies compared on a data set: tau from dev, one table row each, pictures, files."""
