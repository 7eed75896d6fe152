"""What a node's keys may be used for: the document, the decision that it gives, and how two documents differ."""
