"""QKD modules and QRNGs over USB."""
