import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

HERE = Path(__file__).parent
# Minutes each: first, for two processes to end together.
LONGEST = ("test_evaluate_orders.py", "test_resume.py", "test_processors.py", "test_demo.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="the full form of tests that have a short one too"
    )


class Times:
    """What the tests of each folder took, in times.json, and a line for each beyond budget.json."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kind = "slow" if "slow" in report.keywords else "quick"
        self.seconds[f"{Path(report.location[0]).parent} {kind}"] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        times = {name: round(seconds, 1) for name, seconds in sorted(self.seconds.items())}
        path = HERE / "times.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **times}, indent=2) + "\n")
        budgets = json.loads((HERE / "budget.json").read_text())
        for name, seconds in times.items():
            if seconds > (budget := budgets.get(name, 0)):
                terminalreporter.write_line(f"{name}: took {seconds:.0f} s, expected {budget} s")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Times())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    """Whether the full form was asked for."""
    return pytestconfig.getoption("--long")


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Where a test runs that runs on a GPU as well; `-k cuda` picks those."""
    return request.param


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tqdm]:
    """The progress bars of a test, as they come: each has its `n`, `total` and `unit`."""
    made: list[tqdm] = []

    def watched(*items: object, **options: object) -> tqdm:
        made.append(tqdm(*items, **options))
        return made[-1]

    monkeypatch.setattr("util.logs.tqdm", watched)
    return made


@pytest.fixture(scope="session", autouse=True)
def _own_torch_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the commands keep for next time is kept for these tests only; nothing is downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", "no_cache")
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))
        yield
