"""A node whose QRNGs have failed refuses what needs sealing; it does not fall over."""

from pathlib import Path

import pytest
from signing import SIGNING

from qkdnode.errors import NoEntropyError, VaultError
from qkdnode.ids import ALICE
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.requests import OpenLink, ProvisionLink
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.service import Vault


def test_a_request_that_cannot_be_sealed_for_want_of_entropy_fails_as_a_vault_error_and_changes_nothing(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "credential").write_bytes(bytes(range(32)))
    failed: list[bool] = []

    def draw_into(buffer: SecretBuffer) -> None:
        view = memoryview(buffer)  # held by the frame, and so by the error, as the entropy pool does
        if failed:
            raise NoEntropyError(f"no QRNG is healthy for {len(view)} bytes")

    with Vault.open(
        tmp_path / "vault.db",
        root=CredentialFile("credential", tmp_path),
        node="a",
        draw_into=draw_into,
        signer=SIGNING,
        clock_ns=lambda: 1_700_000_000_000_000_000,
        create=True,
    ) as vault:
        vault.call(OpenLink(link="metro", role=ALICE, peer="b"))
        failed.append(True)
        fields = {"pair": b""} if "pair" in ProvisionLink.__struct_fields__ else {}
        with SecretBuffer(96) as material, pytest.raises(VaultError, match="no QRNG is healthy"):
            vault.call(ProvisionLink(link="metro", role=ALICE, peer="b", material=material, **fields))
        assert not vault.call(OpenLink(link="metro", role=ALICE, peer="b")).segments
