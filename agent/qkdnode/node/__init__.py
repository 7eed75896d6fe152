"""The composition root: what is built before a node runs, and the running node."""
