"""Published names become files, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import scan_cache_dir

from hub import download as hub_content
from hub.download import Access, fetch
from hub.published import PUBLISHED
from tests.faults.disks import disk, fill
from tests.hub.client import Client
from tests.hub.handlers import etag
from tests.hub.server import Hub

NAME, REPOSITORY = "lpd_l_256", "mit-han-lab/lpd_l_256"
# More than the ten megabytes at a time in which the library writes.
WEIGHTS = np.random.default_rng(0).bytes(25_000_000)
HALF = 14_000_000
CHOOSE = PUBLISHED[NAME].choose


@pytest.fixture
def weights(hub: Hub) -> Hub:
    hub.add(REPOSITORY, lpd_l_256__pth=WEIGHTS, README__md=b"# LPD")
    return hub


def commit(hub: Hub) -> str:
    return hub.repositories[REPOSITORY].revisions["main"]


def test_a_first_download_and_a_second_without_the_server(weights: Hub, client: Client) -> None:
    result = client.download(NAME)
    path = Path(result.stdout.strip())
    assert path.read_bytes() == WEIGHTS
    assert path.parent.name == commit(weights)
    assert f"{NAME}: lpd_l_256.pth of {REPOSITORY}, commit {commit(weights)}" in result.stderr
    assert [blob.name for blob in client.blobs()] == [etag(WEIGHTS)]
    assert len(weights.downloads()) == 1
    before = len(weights.requests)
    assert client.fetched(NAME) == [path]
    assert len(weights.requests) == before  # the cache does not ask
    assert scan_cache_dir(client.cache).warnings == []
    weights.stop()
    assert client.fetched(NAME) == [path]
    assert client.fetched(NAME, HF_HUB_OFFLINE="1") == [path]


@pytest.mark.parametrize("fault", ["closed", "reset", "whole"])
def test_a_connection_cut_in_mid_file_is_resumed(weights: Hub, client: Client, fault: str) -> None:
    weights.faults.cuts, weights.faults.reset = [HALF], fault == "reset"
    weights.faults.whole = fault == "whole"
    (path,) = client.fetched(NAME)
    assert path.read_bytes() == WEIGHTS
    first, second = [request.headers.get("range") for request in weights.downloads()]
    assert first is None
    if fault != "reset":  # which takes with it what was on its way
        assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= HALF


def test_a_killed_download_is_resumed_by_the_next(weights: Hub, client: Client) -> None:
    weights.faults.cuts, weights.faults.gate = [HALF], threading.Event()
    process = client.start(NAME)
    deadline = time.monotonic() + 30
    while not any(blob.stat().st_size for blob in client.blobs()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    weights.faults.gate.set()
    (part,) = client.blobs()
    assert part.name.endswith(".incomplete")
    there = part.stat().st_size
    assert client.fetched(NAME)[0].read_bytes() == WEIGHTS
    assert weights.downloads()[-1].headers["range"] == f"bytes={there}-"
    assert [blob.name for blob in client.blobs()] == [etag(WEIGHTS)]


def test_a_connection_that_stays_broken_ends_in_one_line(weights: Hub, client: Client) -> None:
    weights.faults.cuts = [HALF, *[0] * 20]
    line = client.refused(NAME)
    assert line.startswith(f"NAME: {NAME}: {REPOSITORY} at {weights.url} cannot be reached, or")
    assert line.endswith("for nodes without a network use python util/download.py beforehand")
    assert not list(client.cache.glob("models--*/snapshots/*/*"))
    weights.faults.cuts.clear()
    assert client.fetched(NAME)[0].read_bytes() == WEIGHTS
    assert "range" in weights.downloads()[-1].headers


def test_a_file_of_another_hash_is_refused_and_deleted(weights: Hub, client: Client) -> None:
    weights.faults.changed = True
    line = client.refused(NAME)
    assert f"expected {etag(WEIGHTS)[:12]} as {weights.url} announces; it was deleted" in line
    assert client.blobs() == []
    weights.faults.changed = False
    assert client.fetched(NAME)[0].read_bytes() == WEIGHTS


def test_small_files_have_hashes_too(hub: Hub, inside: Client) -> None:
    hub.add("user/small", orders__json=b"[[0, 1]]")
    hub.faults.changed = True
    with pytest.raises(ValueError, match="arrived with hash"):
        fetch("user/small", list)
    hub.faults.changed = False
    assert fetch("user/small", list)[0].read_bytes() == b"[[0, 1]]"


def test_a_file_damaged_in_the_cache_is_fetched_anew(weights: Hub, client: Client) -> None:
    (path,) = client.fetched(NAME)
    path.resolve().write_bytes(bytes(100) + WEIGHTS[100:])
    assert "is damaged in the cache" in client.refused(NAME, HF_HUB_OFFLINE="1")
    assert f"{path} is damaged" in client.download(NAME).stderr
    assert path.read_bytes() == WEIGHTS


def test_a_hash_is_compared_once_until_the_file_changes(
    weights: Hub, inside: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    real = hub_content._hash_as
    monkeypatch.setattr(hub_content, "_hash_as", lambda *some: hashed.append(1) or real(*some))
    (path,) = fetch(REPOSITORY, CHOOSE)
    fetch(REPOSITORY, CHOOSE)
    assert len(hashed) == 1
    os.utime(path.resolve(), (1, 1))
    fetch(REPOSITORY, CHOOSE)
    assert len(hashed) == 2
    fetch(REPOSITORY, CHOOSE, access=Access(renew=True))
    assert (len(hashed), len(weights.downloads())) == (3, 1)


def test_what_is_cached_stays_pinned_until_an_update(weights: Hub, client: Client) -> None:
    old = commit(weights)
    client.fetched(NAME)
    repository = weights.repositories[REPOSITORY]
    new = repository.commit({"lpd_l_256.pth": WEIGHTS[::-1]})
    repository.revisions["v1"] = old
    assert client.fetched(NAME)[0].parent.name == old
    (path,) = client.fetched(NAME, "--update")
    assert (path.parent.name, path.read_bytes()) == (new, WEIGHTS[::-1])
    assert client.fetched(NAME)[0].parent.name == new
    assert (
        client.fetched(f"{NAME}@{old}", f"{NAME}@v1")
        == [client.cache / f"models--mit-han-lab--{NAME}/snapshots/{old}/lpd_l_256.pth"] * 2
    )
    assert len(weights.downloads()) == 2


def test_processes_at_once_download_once(weights: Hub, client: Client) -> None:
    processes = [client.start(NAME) for _ in range(4)]
    endings = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, endings
    assert len({output for output, _ in endings}) == 1
    assert len(weights.downloads()) == 1


def test_the_repository_is_listed_and_no_name_trusted(hub: Hub, client: Client) -> None:
    hub.add(REPOSITORY, model_final__pth=WEIGHTS[:5000], README__md=b"# LPD")
    assert client.fetched(NAME)[0].name == "model_final.pth"
    hub.add("mit-han-lab/lpd_xl_256", a__pth=b"a", b__pth=b"b")
    line = "mit-han-lab/lpd_xl_256 holds a.pth, b.pth, expected one lpd_xl_256.pth"
    assert client.refused("lpd_xl_256") == f"NAME: lpd_xl_256: {line}"
    two, three = "res256_steps20_repulsion2", "res256_steps20_repulsion3"
    hub.add("mit-han-lab/lpd_orders", **{f"{two}__json": b"[[0]]", "a__json": b"[[1]]"})
    assert client.fetched(two)[0].read_bytes() == b"[[0]]"
    assert "expected one res256_steps20_repulsion3.json" in client.refused(three)


def test_a_token_is_for_the_hub_only(weights: Hub, client: Client) -> None:
    weights.repositories[REPOSITORY].private = True
    weights.tokens.add("hf_right")
    for token in ("", "hf_wrong"):
        line = client.refused(NAME, HF_TOKEN=token)
        assert line == (
            f"NAME: {NAME}: {REPOSITORY} at {weights.url} is private or does not exist (HTTP 401), "
            "expected the token of somebody who may read it: use `hf auth login` or HF_TOKEN"
        )
    assert client.fetched(NAME, HF_TOKEN="hf_right")[0].read_bytes() == WEIGHTS
    asked = [one.server for one in weights.requests if "authorization" in one.headers]
    assert set(asked) == {"hub"}


@pytest.mark.parametrize(("token", "status"), [("", 401), ("hf_user", 403)])
def test_a_gated_repository(weights: Hub, client: Client, token: str, status: int) -> None:
    weights.repositories[REPOSITORY].gated = True
    weights.tokens.add("hf_user")
    assert client.refused(NAME, HF_TOKEN=token) == (
        f"NAME: {NAME}: {REPOSITORY} at {weights.url} is gated (HTTP {status}), expected that you "
        "were given access: ask for it on its page, then use `hf auth login` or HF_TOKEN"
    )


def test_what_is_not_there(weights: Hub, client: Client) -> None:
    weights.tokens.add("hf_user")
    assert client.refused("llamagen", HF_TOKEN="hf_user") == (
        f"NAME: llamagen: FoundationVision/LlamaGen at {weights.url} does not exist (HTTP 404), "
        "expected a repository there"
    )
    line = client.refused(f"{NAME}@v9")
    assert line.endswith("has no revision 'v9', expected a branch, a tag or a commit of it")
    weights.faults.status = 503
    assert "answered with HTTP 503, expected the files" in client.refused(NAME)
    elsewhere = Client(weights.content_url, client.home)
    weights.contents[f"api/models/{REPOSITORY}/revision/main"] = b"<html>Welcome</html>"
    assert "does not answer as a Hub does" in elsewhere.refused(NAME)


def test_no_network(client: Client, hub: Hub) -> None:
    assert client.refused(NAME, HF_HUB_OFFLINE="1") == (
        f"NAME: {NAME}: {REPOSITORY} at main is not in the cache {client.cache}, expected it there "
        "because downloads are off (HF_HUB_OFFLINE): python util/download.py fetches it where "
        "there is a network"
    )
    assert hub.requests == []
    hub.stop()
    broken = "cannot be reached, or broke off ([Errno 111] Connection refused)"
    assert broken in client.refused(NAME)


def test_a_full_disk(weights: Hub, tmp_path: Path) -> None:
    with disk(tmp_path / "disk") as home:
        client = Client(weights.url, home)
        fill(home, room=10_000_000)
        line = client.refused(NAME)
        assert f"{REPOSITORY} cannot be kept in the cache {client.cache}" in line
        assert "MB free of the 25.0 MB needed" in line
        assert client.blobs() == []


def test_a_disk_that_fills_up_meanwhile(
    weights: Hub, inside: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(url: str, name: str, size: int, part: Path, token: object) -> None:
        part.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_content, "_receive", receive)
    with pytest.raises(ValueError, match="cannot be kept .* \\(No space left on device\\)"):
        fetch(REPOSITORY, CHOOSE)
    assert inside.blobs() == []


def test_all_and_list(hub: Hub, client: Client) -> None:
    for name, entry in PUBLISHED.items():
        repository = hub.repositories.get(entry.repository)
        files = repository.commits[repository.revisions["main"]] if repository else {}
        hub.add(entry.repository, **files, **{entry.file: name.encode()})
    listed = client.download("--list").stdout
    assert listed.count("not here") == len(listed.splitlines()) == 10
    paths = client.fetched("--all")
    assert [path.read_text() for path in paths] == list(PUBLISHED)
    listed = client.download("--list").stdout
    assert (listed.count("not here"), listed.count("commit")) == (0, 10)
