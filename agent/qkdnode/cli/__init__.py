"""The commands of qkdnode, one file each."""
