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


def result_rows(results: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The rows of an evaluation's JSON, with scores under names that say the number of samples.

    Args:
        results: where it is a `metrics.json`, its `scores` in words (`FID-5K: 12.3`) stand for the
            bare numbers between `num_images` and them. Anything else is shown as it is.
    """
    results = dict(results or {})
    words = results.pop("scores", [])
    if not words:
        return rows(results)
    names = list(results)
    kept = names[: names.index("num_images") + 1] if "num_images" in results else names
    scores = dict(line.partition(": ")[::2] for line in words)
    return rows({**{name: results[name] for name in kept}, **scores})


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split()).replace("|", r"\|")
