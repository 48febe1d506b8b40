"""Devices and processes: the mesh, its sharding rules, and what processes share."""
