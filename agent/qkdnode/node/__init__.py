"""The composition root: a node is built from its configuration, supervised, and shut down in order."""
