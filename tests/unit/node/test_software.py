"""The software of a process: what is loaded and what it requires, with digests that follow the files."""

import hashlib
import sys
from pathlib import Path

import pytest

from qkdnode import __version__
from qkdnode.node import software
from qkdnode.node.software import shown
from qkdnode.wire.control import Asset


class Library:
    """A folder on the path in which a test installs packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, *, about: str = "", code: str = "x = 1\n", version: str = "1.0") -> Path:
        """A package of one module; its METADATA begins with name and version."""
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{about}\n"
        (info / "METADATA").write_bytes(text.encode("latin-1"))
        (info / "RECORD").write_text(f"{name}.py,,\n{name}.cpython-311.pyc,,\n{info.name}/METADATA,,\n")
        module = self.folder / f"{name}.py"
        module.write_text(code)
        return module


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Library(tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, sys.modules[__name__])


def package(name: str) -> Asset:
    return software._package(name, is_loaded=True)


def test_the_node_s_own_software_is_told_with_version_licence_and_digests() -> None:
    found = {(asset.kind, asset.name): asset for asset in software.software()}
    own = found["package", "qkdnode"]
    assert (own.version, own.licence, own.details["loaded"]) == (__version__, "Apache-2.0", "yes")
    assert "cryptography" in own.details["requires"].split()
    assert "hypothesis" not in own.details["requires"].split()  # only an extra requires it
    native = found["native", "qkdnode.native.secret"]
    (file,) = (Path(software.__file__).parents[1] / "native").glob("secret.*.so")
    assert native.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    for kind, name in (
        ("package", "cryptography"), ("package", "pyzmq"), ("crypto-module", "OpenSSL of cryptography"),
        ("crypto-module", "OpenSSL of Python"), ("crypto-module", "libzmq"), ("platform", "SQLite"),
        ("platform", "Linux"),
    ):  # fmt: skip
        assert found[kind, name].version
    assert all(asset.digest for asset in found.values() if asset.kind in ("package", "native"))


def test_a_package_s_digest_follows_its_code_and_nothing_else(library: Library) -> None:
    module = library.install("oddity", about="Requires-Dist: msgspec (>=1)\nRequires-Dist: nothing; extra == 'dev'")
    first = package("oddity")
    assert first.digest == hashlib.sha256(
        b"oddity.py\0" + hashlib.sha256(b"x = 1\n").digest()
    ).hexdigest()  # fmt: skip
    assert first.details["requires"] == "msgspec"
    (library.folder / "oddity.cpython-311.pyc").write_bytes(b"compiled")
    assert package("oddity").digest == first.digest
    module.write_text("x = 2\n")
    changed = package("oddity").digest
    assert changed != first.digest
    module.unlink()
    assert package("oddity").digest not in (first.digest, changed, None)


def test_what_is_loaded_is_told_and_what_is_neither_loaded_nor_required_is_not(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.install("bystander")
    library.install("intruder")
    load(monkeypatch, "intruder")
    assert {asset.name for asset in software._packages()} & {"bystander", "intruder"} == {"intruder"}


@pytest.mark.parametrize(
    ("about", "licence"),
    [
        ("License-Expression: MIT OR Apache-2.0", "MIT OR Apache-2.0"),
        ("License: BSD", "BSD"),
        (f"License: {'All rights. ' * 20}\nClassifier: License :: OSI Approved :: MIT License", "MIT License"),
        ("Classifier: License :: OSI Approved :: ISC License (ISCL)", "ISC License (ISCL)"),
        ("License: a\x1b[31mb", "a\\x1b[31mb"),
        ("", None),
    ],
)
def test_the_licence_is_what_the_package_says_in_a_line(library: Library, about: str, licence: str | None) -> None:
    library.install("oddity", about=about)
    assert package("oddity").licence == licence


def test_a_package_whose_description_is_damaged_is_shown_and_ends_nothing(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.install("oddity")
    library.install("needy", about="Requires-Dist: oddity")
    (library.folder / "oddity-1.0.dist-info/METADATA").write_bytes(b"\xff\xfe\x00 no header at all")
    load(monkeypatch, "needy")
    monkeypatch.setattr(software, "OWN", "needy")  # what it requires counts
    found = {asset.name: asset for asset in software._packages()}
    assert found["oddity"].details["unreadable"].startswith("UnicodeDecodeError")
    assert found["oddity"].digest is None
    assert found["cryptography"].version


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1.4.2", "1.4.2"),
        ("a b", "a b"),
        ("\x00\x1b[2J", "\\x00\\x1b[2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\\x00", "\\\\x00"),
        ("\udcff", "\\udcff"),
    ],
)
def test_a_text_from_anywhere_is_shown_escaped(text: str, wanted: str) -> None:
    assert shown(text, 40) == wanted


def test_texts_that_are_cut_stay_apart() -> None:
    cut = [shown("x" * 1000 + end, 40) for end in ("", "a", "b")]
    assert len(set(cut)) == 3
    assert all(len(text) == 40 for text in cut)
