"""How much of the corrected key is secret: counts, disclosure, finite-key length, entropy, failure probabilities."""
