"""Policies that tests share: a good one as text, and its parts."""

from qkdnode.lifecycle.policy.document import Document, parse

ALGORITHMS = frozenset({"AES-256-GCM", "OTP", "HMAC-SHA-256", "ChaCha20-Poly1305", "ML-DSA-44", "Ed25519"})
GOOD = """\
format = "qkdnode-policy/1"
title = "two classes"
levels = ["open", "restricted", "secret"]
compartments = ["red", "blue"]

[[class]]
name = "bulk"
label = "secret:red"
purpose = "bulk-encryption"
algorithms = ["AES-256-GCM", "OTP"]
sizes_bits = [256, 512]
not_before = 2026-01-01T00:00:00Z
not_after = 2027-01-01T01:00:00+01:00
lifetime_s = 86400
max_age_at_release_s = 3600
use_limit = 1
byte_limit = 64
retain_key_s = 60
retain_metadata_s = 31536000
custodian = { operational = "maintainer" }

[[class]]
name = "session"
label = "restricted"
purpose = "session"
sizes_bits = [256]
secrecy = "computational"
release_when_peer_unreachable = true

[[application]]
name = "payroll"
clearance = "secret:red,blue"
bits_per_s = 100000
outstanding_keys = 64
stock_share = 0.5
reserve_bits = 4096

[[application]]
name = "mail"
clearance = "restricted"

[[rule]]
name = "payroll-has-all"
effect = "permit"
applications = ["payroll"]
reason = "contract 7"

[[rule]]
name = "sessions-for-the-cleared"
effect = "permit"
classes = ["session"]
cleared_for = "restricted"

[[rule]]
name = "not-over-the-old-line"
effect = "forbid"
links = ["old"]
purposes = ["bulk-encryption"]
"""


def good() -> Document:
    """The document of GOOD."""
    return parse(GOOD.encode())
