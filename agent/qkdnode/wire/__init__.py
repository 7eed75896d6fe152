"""Messages between the two ends of a link, and their encoding. No sockets."""
