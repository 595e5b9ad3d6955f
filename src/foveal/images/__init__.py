"""Bytes to arrays: image sets, safe decoding and evaluation transforms."""
