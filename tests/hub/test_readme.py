"""The README's lines for scripts and notebooks, as they stand there."""

import os
import re
import subprocess
import sys

from PIL import Image

from tests.commands import ROOT
from tests.hub.worlds import publish

MARKER = "<!-- tests/hub/test_readme.py runs these lines -->"


def test_the_lines_make_an_image(hub, client, tmp_path):
    publish(hub)
    text = (ROOT / "README.md").read_text()
    (lines,) = re.findall(re.escape(MARKER) + r"\s+```python\n(.*?)```", text, re.DOTALL)
    assert len(list(filter(str.strip, lines.splitlines()))) <= 6
    (saved,) = re.findall(r'\.save\("(.*?)"\)', lines)
    subprocess.run(
        [sys.executable, "-c", lines],
        cwd=tmp_path,
        env={**os.environ, **client.variables(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")},
        check=True,
    )
    with Image.open(tmp_path / saved) as image:
        assert (image.size, image.mode) == ((256, 256), "RGB")
        assert len(image.getcolors(2**16) or range(2**16)) > 100
