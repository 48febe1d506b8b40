"""Recordings to transcripts: reading, cutting, decoding, aligning, joining."""
