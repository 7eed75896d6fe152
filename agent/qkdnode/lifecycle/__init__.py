"""The life of a key as tables and pure machines: states, reasons, scopes, policy."""
