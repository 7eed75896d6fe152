"""The one durable state of a node: stock, keys, authentication key, journal, audit leaves, outboxes."""
