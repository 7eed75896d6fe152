"""`python -m qkdnode`."""

from qkdnode.cli.main import main

if __name__ == "__main__":
    main()
