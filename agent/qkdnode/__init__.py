"""qkdnode: the agent of a trusted node in a quantum key distribution network."""

__version__ = "0.1.0"
