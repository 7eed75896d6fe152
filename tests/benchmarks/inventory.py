"""What an agent spends on its inventory at a start: seconds of the processor, and bytes read.

.venv/bin/python tests/benchmarks/inventory.py
"""

import time
from importlib import metadata

import qkdnode.node.agent  # what an agent has loaded
from qkdnode.node.software import software


def main() -> None:
    """Three times: the first may have to read from the disk."""
    for _ in range(3):
        wall, spent = time.perf_counter(), time.process_time()
        found = software()
        wall, spent = time.perf_counter() - wall, time.process_time() - spent
        print(f"{len(found)} assets in {wall:.2f} s, {spent:.2f} s of the processor")
    files = [
        metadata.distribution(asset.name).locate_file(path)
        for asset in found
        if asset.kind == "package" and asset.version
        for path in metadata.distribution(asset.name).files or ()
        if path.suffix in (".py", ".so") or ".so." in path.name
    ]
    size = sum(path.stat().st_size for path in files if path.is_file())  # type: ignore[attr-defined]
    print(f"{len(files)} files of packages, {size / 1e6:.0f} MB, and those of {qkdnode.__name__}")


if __name__ == "__main__":
    main()
