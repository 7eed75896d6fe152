"""Connections over ZeroMQ: the channel to the neighbour, and the parts that supply and its clients share with it."""
