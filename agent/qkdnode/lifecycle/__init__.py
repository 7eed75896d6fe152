"""The life of a key by rule: states, and the policy that says what a key is for, how long, and for whom. No I/O."""
