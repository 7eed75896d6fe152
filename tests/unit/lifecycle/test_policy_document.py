"""The policy document: what is read, what is refused and where, and that it is written back as it was."""

import re
from datetime import UTC, datetime

import pytest
from policies import ALGORITHMS, GOOD, good

from qkdnode.errors import PolicyError
from qkdnode.lifecycle.policy.builtin import Configured, default_document
from qkdnode.lifecycle.policy.check import Kind, check
from qkdnode.lifecycle.policy.decision import terms_digest
from qkdnode.lifecycle.policy.document import MAX_DOCUMENT_BYTES, Document, _moment, parse, render


def changed(before: str, after: str) -> str:
    assert before in GOOD
    return GOOD.replace(before, after, 1)


def findings(text: str) -> list[tuple[str, Kind, bool]]:
    return [(its.place, its.kind, its.error) for its in check(parse(text.encode()), ALGORITHMS)]


def test_a_good_document_has_no_findings_and_is_written_back_as_it_was() -> None:
    document = good()
    assert check(document, ALGORITHMS) == ()
    assert parse(render(document)) == document
    bulk = document.key_class("bulk")
    assert bulk is not None
    assert (bulk.not_before, bulk.not_after) == (1767225600 * 10**9, 1798761600 * 10**9)  # each with its own offset


def test_the_built_in_document_is_one_that_could_be_applied() -> None:
    document = default_document(
        [Configured("a", "b", "line", "its", "session"), Configured("c", "d", "line", "its", "session")]
    )
    assert parse(render(document)) == document
    assert check(document, ALGORITHMS) == ()


def test_any_text_in_a_document_survives_being_written() -> None:
    for text in ('"', "\\", "\n\t\0\x7f", "ü€😀", "'''", '"""', "#"):
        document = good()
        document = Document(format=document.format, levels=document.levels, title=text)
        assert parse(render(document)).title == text


@pytest.mark.parametrize("second", [0, 59, 951_782_399, 951_868_800, 1_709_164_800, 4_107_542_400, 2**33 - 1])
def test_times_are_written_as_the_calendar_has_them(second: int) -> None:
    assert _moment(second * 10**9) == datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('format = "qkdnode-policy/1"', 'format = "qkdnode-policy/2"', r"format"),
        ('levels = ["open", "restricted", "secret"]', "levels = []", r"levels"),
        ('purpose = "session"', 'purpose = "fun"', r"\$\.class\[1\]\.purpose.*\(class 'session'\)"),
        ("use_limit = 1", "use_limit = 0", r"\$\.class\[0\]\.use_limit.*\(class 'bulk'\)"),
        ("sizes_bits = [256, 512]", "sizes_bits = [255]", r"sizes_bits.*\(class 'bulk'\)"),
        ("sizes_bits = [256, 512]", "sizes_bits = []", r"sizes_bits.*\(class 'bulk'\)"),
        ('effect = "forbid"', 'effect = "deny"', r"\$\.rule\[2\]\.effect.*\(rule 'not-over-the-old-line'\)"),
        ('links = ["old"]', 'link = ["old"]', r"unknown field `link`.*\(rule 'not-over-the-old-line'\)"),
        ("stock_share = 0.5", "stock_share = nan", r"stock_share.*\(application 'payroll'\)"),
        ('operational = "maintainer"', 'operational = "auditor"', r"custodian.*\(class 'bulk'\)"),
        ("not_before = 2026-01-01T00:00:00Z", "not_before = 2026-01-01T00:00:00", r"'bulk': `not_before`.*offset"),
        ("not_before = 2026-01-01T00:00:00Z", "not_before = 2026-01-01", r"'bulk': `not_before`.*offset"),
        ("not_before = 2026-01-01T00:00:00Z", "not_before = 1700000000", r"'bulk': `not_before`.*offset"),
        ("not_before = 2026-01-01T00:00:00Z", "not_before = 2026-01-01T00:00:00.5Z", r"`not_before`.*whole seconds"),
        ("not_before = 2026-01-01T00:00:00Z", "not_before = 0001-01-01T00:00:00+14:00", r"`not_before`"),
        ('title = "two classes"', "title = ", r"not TOML"),
        ('title = "two classes"', f"title = {'[' * 5000}", r"TOML|nested"),
        ('title = "two classes"', f"title = {'9' * 5000}", r"not TOML"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(before: str, after: str, said: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(changed(before, after).encode(), "site.toml")
    assert str(refused.value).startswith("site.toml: ")
    assert re.search(said, str(refused.value)), refused.value


def test_a_document_that_is_too_long_or_no_text_is_refused_unread() -> None:
    with pytest.raises(PolicyError, match="over the limit"):
        parse(b"#" * (MAX_DOCUMENT_BYTES + 1))
    with pytest.raises(PolicyError, match="UTF-8"):
        parse(b"\xff")


SESSION = 'label = "restricted"\npurpose = "session"'
FOLLOWING = 'label = "secret:red"\npurpose = "bulk-encryption"\nnot_before = {}'
RULE = '[[rule]]\nname = "new"\n'
CASES = {
    "two rules of one name": (
        changed('name = "sessions-for-the-cleared"', 'name = "payroll-has-all"'),
        ("rule payroll-has-all", Kind.TWICE, True),
    ),
    "a class twice": (changed('name = "session"', 'name = "bulk"'), ("class bulk", Kind.TWICE, True)),
    "a rule with a built-in name": (
        changed("payroll-has-all", "default-deny"),
        ("rule default-deny", Kind.TWICE, True),
    ),
    "an unknown level": (
        changed('clearance = "restricted"', 'clearance = "top"'),
        ("application mail: clearance", Kind.LABEL, True),
    ),
    "an unknown compartment": (
        changed('label = "secret:red"', 'label = "secret:green"'),
        ("class bulk: label", Kind.LABEL, True),
    ),
    "an unknown algorithm": (changed('"OTP"]', '"ROT-13"]'), ("class bulk: algorithms", Kind.UNKNOWN, True)),
    "an unknown class": (
        changed('classes = ["session"]', 'classes = ["session", "sesion"]'),
        ("rule sessions-for-the-cleared: classes", Kind.UNKNOWN, True),
    ),
    "a purpose that no class has": (
        changed('["bulk-encryption"]', '["bulk-encryption", "signature-seed"]'),
        ("rule not-over-the-old-line: purposes", Kind.UNKNOWN, True),
    ),
    "a window that ends before it begins": (
        changed("2027-01-01T01:00:00+01:00", "2025-01-01T00:00:00Z"),
        ("class bulk: not_after", Kind.WINDOW, True),
    ),
    "a window of no length": (
        changed("2027-01-01T01:00:00+01:00", "2026-01-01T01:00:00+01:00"),
        ("class bulk: not_after", Kind.WINDOW, True),
    ),
    "a one-time pad used twice": (
        changed("use_limit = 1", "use_limit = 2"),
        ("class bulk: use_limit", Kind.LIMIT, True),
    ),
    "a one-time pad longer than itself": (
        changed("byte_limit = 64", "byte_limit = 65"),
        ("class bulk: byte_limit", Kind.LIMIT, True),
    ),
    "a key longer than what it may protect": (
        changed("byte_limit = 64", "byte_limit = 32"),
        ("class bulk: byte_limit", Kind.LIMIT, False),
    ),
    "keys that are all longer than what they may protect": (
        changed("byte_limit = 64", "byte_limit = 31"),
        ("class bulk: byte_limit", Kind.LIMIT, True),
    ),
    "a key that outlives its record": (
        changed("retain_metadata_s = 31536000", "retain_metadata_s = 59"),
        ("class bulk: retain_metadata_s", Kind.LIMIT, True),
    ),
    "an age that is never reached": (
        changed("max_age_at_release_s = 3600", "max_age_at_release_s = 31536001"),
        ("class bulk: max_age_at_release_s", Kind.LIMIT, False),
    ),
    "sizes that no key has": (
        GOOD + RULE + 'effect = "permit"\nmin_bits = 512\nmax_bits = 256\n',
        ("rule new: max_bits", Kind.LIMIT, True),
    ),
    "a permission that is all forbidden": (
        GOOD + RULE + 'effect = "forbid"\napplications = ["payroll"]\n',
        ("rule payroll-has-all", Kind.CONTRADICTION, True),
    ),
    "a permission that no clearance can use": (
        changed('clearance = "secret:red,blue"', 'clearance = "open"'),
        ("rule payroll-has-all", Kind.CONTRADICTION, True),
    ),
    "a rule behind one that says the same": (
        GOOD + RULE + 'effect = "permit"\napplications = ["payroll"]\nlinks = ["a"]\n',
        ("rule new", Kind.SHADOWED, False),
    ),
    "a rule about nobody": (
        GOOD + RULE + 'effect = "permit"\ncleared_for = "restricted"\nnot_cleared_for = "restricted"\n',
        ("rule new", Kind.SHADOWED, False),
    ),
    "a class for nobody": (
        GOOD + RULE + 'effect = "forbid"\nclasses = ["bulk"]\n',
        ("class bulk", Kind.SHADOWED, False),
    ),
    "an application with nothing but a reserve": (
        GOOD + '[[application]]\nname = "new"\nclearance = "open"\nreserve_bits = 8\n',
        ("application new", Kind.LIMIT, True),
    ),
    "an application with nothing": (
        GOOD + '[[application]]\nname = "new"\nclearance = "open"\n',
        ("application new", Kind.LIMIT, False),
    ),
    "a rate that never gives a key": (
        changed("bits_per_s = 100000", "bits_per_s = 100000\nburst_bits = 255"),
        ("application payroll: burst_bits", Kind.LIMIT, True),
    ),
    "a burst of no rate": (
        changed("bits_per_s = 100000", "burst_bits = 256"),
        ("application payroll: burst_bits", Kind.LIMIT, True),
    ),
    "windows that overlap": (
        changed(SESSION, FOLLOWING.format("2026-12-31T23:59:59Z")),
        ("class session: not_before", Kind.WINDOW, False),
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_every_fault_is_found_at_its_place(what: str) -> None:
    text, expected = CASES[what]
    assert expected in findings(text)


def test_algorithms_are_held_to_the_registry_of_today() -> None:
    def found(*gone: str, deprecated: tuple[str, ...] = ()) -> list[tuple[str, bool]]:
        findings = check(good(), ALGORITHMS, gone, deprecated)
        return [(finding.text, finding.error) for finding in findings if finding.kind is Kind.ALGORITHM]

    assert found() == []
    assert found("OTP") == [("OTP is among them and disallowed today", False)]
    assert found("OTP", "AES-256-GCM") == [("AES-256-GCM, OTP are all disallowed today: no key is cut for it", True)]
    assert found(deprecated=("OTP",)) == [("OTP is deprecated: plan its replacement", False)]


def test_windows_that_only_touch_do_not_overlap() -> None:
    text = changed(SESSION, FOLLOWING.format("2027-01-01T00:00:00Z"))
    assert not [place for place, kind, _ in findings(text) if kind is Kind.WINDOW]


def test_a_document_with_too_many_cases_is_refused_in_bounded_time() -> None:
    names = ", ".join(f'"n{i}"' for i in range(40))
    rules = "".join(
        f'[[rule]]\nname = "r-{kind}-{i}"\neffect = "permit"\n{kind} = ["n{i}"]\n'
        for kind in ("applications", "remotes", "links")
        for i in range(40)
    )
    assert names
    assert ("document", Kind.SIZE, True) in findings(GOOD + rules)


def test_an_empty_document_permits_nothing_and_says_so() -> None:
    assert findings('format = "qkdnode-policy/1"\nlevels = ["open"]') == [("document", Kind.LIMIT, True)]


def test_every_term_of_a_class_counts_in_its_digest() -> None:
    seen = {terms_digest(good().classes[0])}
    body = GOOD.partition("[[class]]")[2].partition("[[class]]")[0]
    for line in body.strip().splitlines():
        shorter = GOOD.replace(line + "\n", "", 1)
        if line.split(" = ")[0] in ("name", "label", "purpose"):
            value = {"name": "bulk2", "label": "secret", "purpose": "session"}[line.split(" = ")[0]]
            shorter = GOOD.replace(line, f'{line.split(" = ")[0]} = "{value}"', 1)
        seen.add(terms_digest(parse(shorter.encode()).classes[0]))
    assert len(seen) == 1 + len(body.strip().splitlines())
