"""The `qkdnode` command: one file per subcommand."""
