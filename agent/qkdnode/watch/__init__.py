"""What an operator sees of a node: alarms and logs."""
