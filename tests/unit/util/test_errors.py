"""One line, once, and exit code 2 from every worker."""

import os
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import dedent

import pytest
import torch

from tests.commands import ROOT, run_command
from util.errors import UserError, blame, compile_failure, require_file, require_writable_folder

HEADER = f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom util.errors import *\n"


def command(body: str, *flags: str, **variables: str) -> CompletedProcess:
    return run_command("-c", HEADER + body, *flags, **variables)


def test_bad_input_is_one_line_and_with_debug_a_traceback() -> None:
    body = 'def main(): raise UserError("--flag: found this,\\nexpected that")\nrun(main)'
    result = command(body, "--debug")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("\nerror: --flag: found this, expected that\n")


def test_torchrun_prints_the_line_once_and_every_worker_exits_2(tmp_path: Path) -> None:
    body = f"""
        from util import distributed
        exit_now = os._exit
        def note_exit(code):
            open(os.path.join({str(tmp_path)!r}, "exit" + os.environ["RANK"]), "w").write(str(code))
            exit_now(code)
        os._exit = note_exit
        def main():
            import torch
            rank = int(os.environ["RANK"])
            def work():
                if rank == 1:
                    raise UserError("--flag: wrong")
            with distributed.start(distributed.Launch(rank, 3, rank), torch.device("cpu")):
                distributed.fail_together(work)
        run(main)
    """
    (tmp_path / "script.py").write_text(HEADER + dedent(body))
    result = run_command(tmp_path / "script.py", processes=3)
    assert result.returncode == 1  # torchrun's own
    assert result.stderr.count("error: --flag: wrong") == 1
    assert [(tmp_path / f"exit{rank}").read_text() for rank in range(3)] == ["2", "2", "2"]


def test_workers_end_without_the_shutdown_that_can_abort_them() -> None:
    body = 'import atexit\natexit.register(print, "shutting down")\nrun(lambda: print("done"))'
    assert command(body).stdout == "done\nshutting down\n"
    worker = command(body, WORLD_SIZE="2")
    assert (worker.returncode, worker.stdout) == (0, "done\n")


def test_no_compiler_is_one_line(tmp_path: Path) -> None:
    body = "import torch\nrun(lambda: torch.compile(torch.nn.GELU())(torch.zeros(9)))"
    result = command(body, PATH=str(tmp_path), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert result.returncode == 2
    assert result.stderr.startswith("error: --compile: found that this machine cannot compile (")
    assert result.stderr.endswith("or --no-compile\n") and result.stderr.count("\n") == 1


def test_what_fails_to_compile_is_told_from_what_fails_when_run() -> None:
    def no_backend(graph: torch.fx.GraphModule, inputs: list) -> None:
        raise ValueError("nothing here")

    with pytest.raises(RuntimeError) as caught:
        torch.compile(torch.neg, backend=no_backend)(torch.zeros(2))
    assert compile_failure(caught.value) == "backend='no_backend' raised:"
    assert compile_failure(RuntimeError("the code's own")) is None
    torch.compiler.reset()


def test_files_and_folders_must_be_usable(tmp_path: Path) -> None:
    with pytest.raises(KeyError), blame("--f"):  # a bug stays one
        raise KeyError
    with pytest.raises(UserError, match="is not a file, expected a thing"):
        require_file(tmp_path, "--f", "a thing")
    assert list(require_writable_folder(tmp_path / "caf\u00e9" / "b", "--f").iterdir()) == []
    folder = tmp_path / os.fsdecode(b"caf\xe9")  # a name that not all files can hold
    with pytest.raises(UserError, match=r"^--f: found .*caf\\udce9', expected a name"):
        require_writable_folder(folder, "--f")
    assert not folder.exists()
