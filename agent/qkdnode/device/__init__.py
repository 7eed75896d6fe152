"""QKD modules and QRNGs: USB transport, drivers, health tests, the entropy pool and emulated devices."""
