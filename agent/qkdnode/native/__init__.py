"""The compiled core: locked memory, carry-less arithmetic, Cascade, packets, the emulated devices."""
