"""The model card that goes with saved weights: README.md of a repository on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PAPER = "https://arxiv.org/abs/2507.01957"

# For Jinja, by `ModelCard.from_template`. Results are those the caller has measured, or none.
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ description }}

For Locality-aware Parallel Decoding for Efficient Autoregressive Image Generation,
[arXiv 2507.01957]({{ paper_url }}).

## Use

```python
{{ usage }}
```

## Configuration

| argument | value |
|---|---|
{% for name, value in config -%}
| {{ name }} | {{ value }} |
{% endfor %}
{{ parameters }} parameters.

## Results

{% if results -%}
Measured with these weights:

|  |  |
|---|---|
{% for name, value in results -%}
| {{ name }} | {{ value }} |
{% endfor -%}
{% else -%}
None were measured for this card.
{% endif -%}
"""


def rows(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Names and values for a table; what is no text is written as JSON."""
    return [(_cell(name), _cell(value)) for name, value in (values or {}).items()]


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split()).replace("|", r"\|")
