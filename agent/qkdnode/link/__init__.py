"""One QKD link: the driver that runs the machines against the channel, the module, the workers and the vault."""
