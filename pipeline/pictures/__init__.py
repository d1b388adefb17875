"""Decoding, checking, encoding and showing single pictures."""
