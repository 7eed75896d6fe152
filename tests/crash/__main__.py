"""`python -m crash`."""

import sys

from crash.run import main

if __name__ == "__main__":
    sys.exit(main())
