"""The software of a running node: packages with version, licence and digest, native modules, libraries, the platform.

A package's digest is SHA-256 over its files of code as they are on the disk: for each, in the order of their paths, the
path, a zero byte and the SHA-256 of the file. Compiled copies that Python makes by itself are left out.
"""

import hashlib
import importlib
import os
import platform
import re
import ssl
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from cryptography.hazmat.backends.openssl.backend import backend

from qkdnode.channel.curve import libzmq_version
from qkdnode.vault.assets import MAX_MARK_CHARACTERS, MAX_NAME_CHARACTERS
from qkdnode.vault.disk import sqlite_version
from qkdnode.wire.control import Asset

PACKAGE, NATIVE, CRYPTO, PLATFORM = "package", "native", "crypto-module", "platform"
KINDS = (PACKAGE, NATIVE, CRYPTO, PLATFORM)
OWN = "qkdnode"
MAX_REQUIRES_CHARACTERS = 2000
_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)(.*)$", re.DOTALL)
_SHORT_LICENCE = 100  # a longer one is the text itself, not its name
MISSING = b"missing"
UNREADABLE = (metadata.PackageNotFoundError, OSError, ValueError, LookupError)


def shown(text: str, most: int) -> str:
    """A text that may come from anywhere, for people: what is not printable escaped, the end of a long one replaced by
    a digest, so that two texts never look the same."""
    escaped = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)
    if len(escaped) <= most:
        return escaped
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{escaped[: most - len(digest) - 3]}...{digest}"


def software() -> tuple[Asset, ...]:
    """All of it. Reads every file of code: some hundred milliseconds, most of it without the interpreter's lock."""
    return (*_packages(), *_natives(), *_crypto_modules(), *_platform())


def _packages() -> Iterator[Asset]:
    loaded = _loaded()
    for name in sorted({*_required(OWN), *loaded}):
        try:
            yield _package(name, name in loaded)
        except metadata.PackageNotFoundError:
            continue  # it is required elsewhere: on another system, or by another Python
        except UNREADABLE as error:
            # What a package says of itself may be damaged: that is to be seen, and no reason to end the node.
            details = {"unreadable": shown(repr(error), MAX_MARK_CHARACTERS)}
            yield Asset(kind=PACKAGE, name=shown(name, MAX_NAME_CHARACTERS), details=details)


def _package(name: str, is_loaded: bool) -> Asset:
    package = metadata.distribution(name)
    details = {
        "loaded": "yes" if is_loaded else "no",
        "purl": f"pkg:pypi/{name}@{package.version}",
        "requires": shown(" ".join(sorted(_requirements(package))), MAX_REQUIRES_CHARACTERS),
        "supplier": _bounded(_field(package, "Author", "Author-email", "Maintainer")),
    }
    return Asset(
        kind=PACKAGE,
        name=shown(name, MAX_NAME_CHARACTERS),
        version=_bounded(package.version),
        digest=_digest_of(package, name),
        licence=_licence(package),
        details={key: value for key, value in details.items() if value},
    )


def _natives() -> Iterator[Asset]:
    for path in sorted((_own_folder() / "native").glob("*.so")):
        name = f"{OWN}.native.{path.name.partition('.')[0]}"
        details = {"file": path.name, "loaded": "yes" if name in sys.modules else "no"}
        yield Asset(kind=NATIVE, name=name, digest=_digest(path).hex(), version=_own_version(), details=details)


def _crypto_modules() -> Iterator[Asset]:
    openssl = backend.openssl_version_text()
    yield Asset(kind=CRYPTO, name="OpenSSL of cryptography", version=_bounded(openssl), licence="Apache-2.0")
    yield Asset(kind=CRYPTO, name="OpenSSL of Python", version=_bounded(ssl.OPENSSL_VERSION), licence="Apache-2.0")
    yield Asset(kind=CRYPTO, name="libzmq", version=libzmq_version(), licence="MPL-2.0", details={"computes": "CURVE"})


def _platform() -> Iterator[Asset]:
    python = Path(sys.executable)
    yield Asset(
        kind=PLATFORM,
        name=platform.python_implementation(),
        version=platform.python_version(),
        digest=_digest(python).hex() if python.is_file() else None,
        licence="PSF-2.0",
    )
    yield Asset(kind=PLATFORM, name="SQLite", version=sqlite_version(), licence="blessing")
    system = os.uname()
    details = {"machine": system.machine, "build": shown(system.version, MAX_MARK_CHARACTERS)}
    yield Asset(kind=PLATFORM, name=system.sysname, version=_bounded(system.release), details=details)


def _loaded() -> set[str]:
    """The packages of which something is loaded."""
    found = {OWN}
    modules = {module.partition(".")[0] for module in list(sys.modules)}
    for package in metadata.distributions():
        try:
            if modules & _tops(package):
                found.add(_normal(_field(package, "Name")))
        except UNREADABLE:
            continue  # nobody can say what it holds; where it is required, it is told as unreadable
    return found - {""}


def _tops(package: metadata.Distribution) -> set[str]:
    """The modules by which a package is imported."""
    listed = package.read_text("top_level.txt")
    if listed is not None:
        return set(listed.split())
    return {path.parts[0].partition(".")[0] for path in package.files or () if path.suffix in (".py", ".so")}


def _required(name: str) -> set[str]:
    """A package with all that it requires, and so on, as far as it is there."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            with suppress(*UNREADABLE):
                waiting.extend(_requirements(metadata.distribution(name)))
    return found


def _requirements(package: metadata.Distribution) -> set[str]:
    """Names of what a package requires, without what only its extras do."""
    found = set()
    for line in package.requires or ():
        matched = _REQUIREMENT.match(line)
        if matched is not None and "extra" not in matched[2].partition(";")[2]:
            found.add(_normal(matched[1]))
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licence(package: metadata.Distribution) -> str | None:
    named = _field(package, "License-Expression", "License")
    if not named or len(named) > _SHORT_LICENCE or "\n" in named:
        classes = [
            line.rpartition(" :: ")[2] for line in package.metadata.get_all("Classifier") or () if "License ::" in line
        ]
        named = " OR ".join(classes)
    return _bounded(named) or None


def _field(package: metadata.Distribution, *names: str) -> str:
    """The first of these fields that says something."""
    found = (value for name in names for value in package.metadata.get_all(name) or ())
    return next(filter(None, found), "")


def _digest_of(package: metadata.Distribution, name: str) -> str | None:
    """None for a package that does not say which files it has."""
    if name == OWN:
        folder = _own_folder()
        return _digest_over((str(path.relative_to(folder)), path) for path in folder.rglob("*"))
    if package.files is None:
        return None
    return _digest_over((str(path), Path(str(package.locate_file(path)))) for path in package.files)


def _digest_over(files: Iterable[tuple[str, Path]]) -> str | None:
    whole, count = hashlib.sha256(), 0
    for name, path in sorted(files):
        if path.suffix in (".py", ".so") or ".so." in path.name:
            whole.update(name.encode("utf-8", "surrogatepass") + b"\0" + _digest(path))
            count += 1
    return whole.hexdigest() if count else None


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, hashlib.sha256).digest()
    except OSError:
        return MISSING


def _own_folder() -> Path:
    return Path(str(importlib.import_module(OWN).__file__)).parent


def _own_version() -> str:
    version: str = importlib.import_module(OWN).__version__
    return version


def _bounded(text: str) -> str:
    return shown(text.strip(), MAX_MARK_CHARACTERS)
