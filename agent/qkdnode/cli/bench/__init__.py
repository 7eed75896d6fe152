"""Speed and quality of the computing stages, measured on this machine."""
