"""Threads for work that releases the interpreter lock."""
