"""The numbers hold on other processors too, as far as this one has their instructions."""

import pytest

from tests.commands import run_command

# Golden numbers, sampling, likelihoods, scores; what torch.compile makes takes long and is none.
TESTS = (
    "tests/golden",
    "tests/unit/models",
    "--ignore=tests/unit/models/test_compiled_training.py",
    "tests/unit/tokenizers/test_fast_decoder.py",
    "tests/unit/tokenizers/test_vq_model.py",
    "tests/unit/studies/test_likelihood.py",
    "tests/unit/evaluation",
    "tests/unit/util/test_device.py",
    "tests/app/test_studio.py",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lacking",
    [
        pytest.param({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, id="AMX"),
        pytest.param(
            {
                "ONEDNN_MAX_CPU_ISA": "AVX2",
                "ATEN_CPU_CAPABILITY": "avx2",
                "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            },
            id="AVX-512",
        ),
    ],
)
def test_numbers_hold_without(lacking: dict[str, str]) -> None:
    options = ("-m", "not slow", "-n", "2", "--dist", "loadscope", "-p", "no:cacheprovider")
    result = run_command("-m", "pytest", *options, *TESTS, timeout=1200, **lacking)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:]
