"""Published names become files, whatever happens on the way."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import scan_cache_dir

from hub import download as hub_download
from hub.download import Access
from hub.published import PUBLISHED, download
from tests.faults.disks import disk, fill
from tests.hub.server import etag
from util.errors import UserError

NAME, REPOSITORY = "lpd_l_256", "mit-han-lab/lpd_l_256"
# More than the ten megabytes at a time in which the library writes.
WEIGHTS = np.random.default_rng(0).bytes(25_000_000)
HALF = 14_000_000


@pytest.fixture
def weights(hub):
    hub.add(REPOSITORY, lpd_l_256__pth=WEIGHTS, README__md=b"# LPD")
    return hub


def refused(name: str = NAME, **access: object) -> str:
    """The one line about a name that cannot be downloaded."""
    with pytest.raises(UserError) as caught:
        download(name, Access(**access))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{name}: ")


def test_a_first_download_and_a_second_without_the_server(weights, client):
    commit = weights.head(REPOSITORY)
    result = client.download(NAME)
    path = Path(result.stdout.strip())
    assert path.read_bytes() == WEIGHTS
    assert path.parent.name == commit
    assert f"{NAME}: lpd_l_256.pth of {REPOSITORY}, commit {commit}" in result.stderr
    assert [blob.name for blob in client.blobs()] == [etag(WEIGHTS)]
    assert len(weights.downloads) == 1
    assert scan_cache_dir(client.cache).warnings == []
    weights.stop()
    assert client.download(NAME).stdout == result.stdout  # the cache does not ask
    failed = client.download("llamagen")
    assert failed.returncode == 2 and failed.stdout == "" and "Traceback" not in failed.stderr
    broken = "cannot be reached, or broke off ([Errno 111] Connection refused)"
    assert broken in failed.stderr.splitlines()[-1]


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_cut_in_mid_file_is_resumed(weights, inside, reset):
    weights.faults.cuts, weights.faults.reset = [HALF], reset
    assert download(NAME).read_bytes() == WEIGHTS
    first, second = [headers.get("Range") for headers in weights.downloads]
    assert first is None
    if not reset:  # which takes with it what was on its way
        assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= HALF


def test_a_killed_download_is_resumed_by_the_next(weights, client, inside):
    """Also one whose bytes were all there: it asks for no more."""
    weights.faults.cuts, weights.faults.gate = [HALF], threading.Event()
    process = client.start(NAME)
    while not any(blob.stat().st_size for blob in client.blobs()):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    weights.faults.gate.set()
    (part,) = client.blobs()
    assert part.name.endswith(".incomplete")
    there = part.stat().st_size
    assert download(NAME).read_bytes() == WEIGHTS
    assert weights.downloads[-1]["Range"] == f"bytes={there}-"
    (blob,) = client.blobs()
    assert blob.name == etag(WEIGHTS)
    blob.rename(blob.with_name(f"{blob.name}.lpd-0123abcd.incomplete"))
    assert download(NAME).read_bytes() == WEIGHTS
    assert len(weights.downloads) == 2 and client.blobs() == [blob]


def test_a_connection_that_stays_broken_ends_in_one_line(weights, inside, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    weights.faults.cuts = [HALF, *[0] * 30]
    line = refused()
    assert line.startswith(f"{REPOSITORY} at {weights.url} cannot be reached, or broke off (")
    assert line.endswith("for nodes without a network use python util/download.py beforehand")
    assert not list(inside.cache.glob("models--*/snapshots/*/*"))
    weights.faults.cuts.clear()
    assert download(NAME).read_bytes() == WEIGHTS
    assert "Range" in weights.downloads[-1]


@pytest.mark.parametrize("content", [WEIGHTS, b"of git"])
def test_a_file_of_another_hash_is_refused_and_deleted(hub, inside, content):
    hub.add(REPOSITORY, lpd_l_256__pth=content)
    hub.faults.changed = True
    assert f"arrived damaged, expected hash {etag(content)[:12]} as {hub.url}" in refused()
    assert inside.blobs() == []
    hub.faults.changed = False
    assert download(NAME).read_bytes() == content


def test_a_hash_is_compared_once_until_the_file_changes_and_a_damaged_one_fetched_anew(
    weights, inside, monkeypatch, caplog
):
    hashed, real = [], hub_download._digest
    monkeypatch.setattr(hub_download, "_digest", lambda *some: hashed.append(1) or real(*some))
    path = download(NAME)
    download(NAME)
    assert len(hashed) == 1
    os.utime(path.resolve(), (1, 1))
    download(NAME)
    assert len(hashed) == 2
    download(NAME, Access(renew=True))
    assert (len(hashed), len(weights.downloads)) == (3, 1)
    path.resolve().write_bytes(bytes(100) + WEIGHTS[100:])
    assert "is not in the cache" in refused(offline=True)
    assert f"{path} is damaged" in caplog.text
    assert download(NAME).read_bytes() == WEIGHTS


def test_what_is_cached_stays_pinned_until_an_update(weights, client, inside):
    old, repository = weights.head(REPOSITORY), weights.repositories[REPOSITORY]
    first = download(NAME)
    new = repository.commit({"lpd_l_256.pth": WEIGHTS[::-1]})
    repository.revisions["v1"] = old
    assert download(NAME) == first and first.parent.name == old
    second = Path(client.download(NAME, "--update").stdout.strip())
    assert second.parent.name == new and second.read_bytes() == WEIGHTS[::-1]
    assert [download(f"{NAME}{at}") for at in ("", f"@{old}", "@v1")] == [second, first, first]
    assert len(weights.downloads) == 2


def test_processes_at_once_download_once(weights, client):
    processes = [client.start(NAME) for _ in range(3)]
    endings = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, endings
    assert len({output for output, _ in endings}) == 1
    assert len(weights.downloads) == 1


def test_the_repository_is_listed_and_no_name_trusted(hub, inside):
    hub.add(REPOSITORY, model_final__pth=WEIGHTS[:5000], README__md=b"# LPD")
    assert download(NAME).name == "model_final.pth"
    hub.add("mit-han-lab/lpd_xl_256", a__pth=b"a", b__pth=b"b")
    line = "found a.pth, b.pth, expected config.json and model.safetensors, or one .pth"
    assert refused("lpd_xl_256") == line
    two, three = "res256_steps20_repulsion2", "res256_steps20_repulsion3"
    hub.add("mit-han-lab/lpd_orders", **{f"{two}__json": b"[[0]]", "a__json": b"[[1]]"})
    assert download(two).read_bytes() == b"[[0]]"
    assert "expected one res256_steps20_repulsion3.json" in refused(three)


def test_what_may_not_be_had_and_a_token_is_for_the_hub_only(weights, inside, monkeypatch):
    where, repository = f"{REPOSITORY} at {weights.url}", weights.repositories[REPOSITORY]
    login = "use `hf auth login` or HF_TOKEN"
    weights.tokens.add("hf_right")
    repository.private = True
    for token in ("", "hf_wrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        line = f"(HTTP 401), expected the token of somebody who may read it: {login}"
        assert refused() == f"{where} is private or does not exist {line}"
    repository.gated = True
    for token, status in ((False, 401), ("hf_right", 403)):
        repository.private = status == 403
        line = f"(HTTP {status}), expected that you were given access: ask for it on its page, then"
        assert refused(token=token) == f"{where} is gated {line} {login}"
    repository.gated = False
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    line = f"FoundationVision/LlamaGen at {weights.url} does not exist (HTTP 404), expected a rep"
    assert refused("llamagen").startswith(line)
    line = "has no revision 'v9', expected a branch, a tag or a commit of it"
    assert refused(f"{NAME}@v9") == f"{where} {line}"
    for status, line in (
        (503, "fails (HTTP 503), expected the files: try again later"),
        (403, "may not be read with this token (HTTP 403), expected one that may"),
    ):
        weights.faults.status = status
        assert refused() == f"{where} {line}"
    weights.faults.status = 0
    assert download(NAME).read_bytes() == WEIGHTS
    assert not any("Authorization" in headers for headers in weights.downloads)


def test_what_is_no_hub(weights, inside, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", weights.content_url)
    weights.contents[f"api/models/{REPOSITORY}/revision/main"] = b"<html>Welcome</html>"
    assert "does not answer as a Hub does" in refused()


def test_a_full_disk(weights, inside, tmp_path):
    with disk(tmp_path / "disk") as cache:
        fill(cache, room=15_000_000)
        line = f"{REPOSITORY} cannot be kept in the cache {cache} (No space left on device)"
        assert line in refused(cache=cache)
        assert list(cache.glob("models--*/blobs/*")) == []


def test_all_and_list(hub, client):
    for name, entry in PUBLISHED.items():
        known = hub.repositories.get(entry.repository)
        files = known.commits[known.revisions["main"]] if known else {}
        hub.add(entry.repository, **files, **{entry.file: name.encode()})
    listed = client.download("--list").stdout
    assert listed.count("not here") == len(listed.splitlines()) == 10
    paths = client.download("--all").stdout.splitlines()
    assert [Path(path).read_text() for path in paths] == list(PUBLISHED)
    listed = client.download("--list").stdout
    assert (listed.count("not here"), listed.count("commit")) == (0, 10)
