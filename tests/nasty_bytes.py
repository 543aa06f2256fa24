"""Bytes that broke readers of JSON and YAML, ours or others': where fuzzers begin."""

from __future__ import annotations

NASTY_JSON = (
    b"[" * 100_000, b'{"a":' * 2_000, b"9" * 5_000, b"1e999", b"NaN", b'"\\ud800"', b"\xff\xfe",
    b"\x00", b"\xef\xbb\xbf{}", b"null", b"[]", b"{}", b'{"run_key": "../../x"}',
)  # fmt: skip
NASTY_YAML = (
    b"[" * 2_000, b"a: &a [*a]", b"a: &a {<<: *a}", b"? [a]\n: b", b"? {a: 1}\n: b", b"a: 0b_",
    b"a: !!int ''", b"a: !!bool x", b"a: !!timestamp x", b"a: 2020-13-45", b"a: !!float x",
    b"a: " + b"9" * 5_000, b"a: 0x" + b"f" * 5_000, b"a: 1" + b":59" * 400 + b".5",
    b'a: "\\uD800"', b"a: \x00", b"\xef\xbb\xbfa: 1", b"\xff", b"a: .nan", b"a: .inf",
    b"a: !!binary x", b"a: !!python/object/apply:os.system [true]", b"a: 1\na: 2",
    b"\n".join([b"x0: &x0 [1]", *(b"x%d: &x%d [*x%d, *x%d]" % (i, i, i - 1, i - 1)
                                  for i in range(1, 60))]),
    b"\n".join([b"x0: &x0 {a: 1}", *(b"x%d: &x%d {<<: [*x%d, *x%d]}" % (i, i, i - 1, i - 1)
                                     for i in range(1, 60))]),
)  # fmt: skip
