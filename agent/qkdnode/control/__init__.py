"""The operator's local socket: who asks is proven, what they ask is decided by rules and journalled, then done."""
