"""Hostile files, made and read: damage to good ones, and a process that may take only its share."""

import textwrap
from pathlib import Path

from hypothesis import strategies as st

from tests.commands import succeed

# One gigabyte, over what Python and its libraries take to start.
SHARE = 10**9

# Any JSON value.
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda values: st.one_of(
        st.lists(values, max_size=4), st.dictionaries(st.text(max_size=3), values, max_size=3)
    ),
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with some stretches replaced, left out or doubled, and perhaps cut short."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(start + 20, len(content))))
        middle = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"", b"(", b"-", b"\0"])))
        content = content[:start] + middle + content[end:]
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


def npy(header: str, body: bytes = b"") -> bytes:
    """An .npy file with any header."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def claiming(dtype: str, shape: str, body: bytes = bytes(64)) -> bytes:
    """An .npy file whose header says what it likes."""
    return npy(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}", body)


# .npy files whose headers claim anything.
LENGTHS = st.one_of(st.integers(-2, 20), st.sampled_from([10**12, 2**62, 2**63, 10**30, True]))
HEADERS = st.builds(
    claiming,
    st.sampled_from(["|u1", "<i4", ">i8", "<f4", "|V0", "|V9", "|O", "|S3", "<U9", "<M8[s]", "x"]),
    st.lists(LENGTHS, max_size=4).map(lambda lengths: str(tuple(lengths))),
    st.binary(max_size=100),
)


def one_line(error: Exception) -> bool:
    """Whether the message suits a terminal."""
    return "\n" not in str(error) and len(str(error)) < 1000


def read_confined(imports: str, read: str, *paths: Path) -> list[str]:
    """Try to `read` (an expression in `path`) hostile files with little memory and processor time.

    A line for each, `ValueError: message`; the process fails where one raises anything else.
    """
    script = f"""
        import resource, sys, time
        from pathlib import Path
        {imports}
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + {SHARE}
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for path in map(Path, sys.argv[1:]):
            start = time.process_time()
            try:
                {read}
            except ValueError as error:
                print("ValueError:", " ".join(str(error).split()))
            else:
                sys.exit(f"{{path}}: nothing is wrong with it")
            if time.process_time() - start > 10:
                sys.exit(f"{{path}}: took {{time.process_time() - start}} s")
    """
    done = succeed("-c", textwrap.dedent(script), *paths, OPENBLAS_NUM_THREADS="1")
    return done.stdout.splitlines()
