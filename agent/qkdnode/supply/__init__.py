"""The key supply agent: keys to the applications that subscribe, over ZeroMQ."""
