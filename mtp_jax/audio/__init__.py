"""Recordings to waveforms, and waveforms to log-mel features."""
