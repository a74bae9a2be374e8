"""The README's lines for scripts and notebooks, as they stand there."""

import re

from PIL import Image

from tests.commands import ROOT, succeed
from tests.hub.worlds import publish

MARKER = "<!-- tests/hub/test_readme.py runs these lines -->"


def test_the_lines_make_an_image(hub, client, tmp_path):
    publish(hub)
    text = (ROOT / "README.md").read_text()
    (lines,) = re.findall(re.escape(MARKER) + r"\s+```python\n(.*?)```", text, re.DOTALL)
    assert len(list(filter(str.strip, lines.splitlines()))) <= 6
    (saved,) = re.findall(r'\.save\("(.*?)"\)', lines)
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path[0] = {str(ROOT)!r}\n{lines}")
    succeed(program, folder=tmp_path, **client.variables())
    with Image.open(tmp_path / saved) as image:
        assert (image.size, image.mode) == ((256, 256), "RGB")
        assert len(image.getcolors(2**16) or range(2**16)) > 100
