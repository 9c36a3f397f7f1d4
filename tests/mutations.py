"Strategies of hypothesis that damage what a program wrote: bytes, and structures of lists and objects."

import copy

from hypothesis import strategies as st


@st.composite
def edits(draw, data):
    "Bytes with some of them replaced, removed, repeated, or cut off"
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at, n = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["flip", "insert", "delete", "repeat", "cut"]))
        if kind == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "insert":
            data[at:at] = draw(
                st.binary(max_size=12)
                | st.sampled_from([b"[", b"{", b'"', b"1e999", b"NaN", b"-", b"\\ud800", b"9" * 400, b"null", b"true"])
            )
        elif kind == "delete":
            del data[at : at + n]
        elif kind == "repeat":
            data[at:at] = data[at : at + n]
        elif kind == "cut":
            del data[at:]
    return bytes(data)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["elpv", "\ud800", "\x1b[2J", "0123456789abcdef"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["auroc", "lr", "seconds", "dataset", "heads"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def places(value, path=()):
    "The ways to all parts of a structure"
    yield path
    for k in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[k], (*path, k))


@st.composite
def structures(draw, record):
    "A record in which some parts are replaced, removed or added"
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([p for p in places(record) if p] or [("a",)]))
        inner = record
        for k in way:
            inner = inner[k]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "replace":
            inner[last] = draw(values)
        elif kind == "add" and isinstance(inner, dict):
            inner[draw(st.text(max_size=8))] = draw(values)
        elif len(inner):
            del inner[last]
    return record
