"""The numbers hold on other processors too, as far as this one has their instructions."""

import pytest

from tests.commands import run_command

# Golden numbers, networks and samplers, likelihoods, features: what kernels of a processor decide.
MODELS = ("fast_path", "decoding", "kv_cache", "sampling", "cross_entropy", "dropout")
TESTS = (
    *("tests/golden", "tests/unit/evaluation/test_features.py", "tests/unit/util/test_device.py"),
    *(f"tests/unit/models/test_{name}.py" for name in MODELS),
    *(f"tests/unit/tokenizers/test_{name}.py" for name in ("fast_decoder", "vq_model")),
    *("tests/unit/studies/test_likelihood.py", "tests/app/test_studio.py"),
)
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
AVX2 |= {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "lacking",
    [
        pytest.param({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, id="AMX"),
        pytest.param(AVX2, id="AVX-512"),
    ],
)
def test_numbers_hold_without(lacking: dict[str, str]) -> None:
    options = ("-m", "not slow", "-n", "2", "--dist", "loadscope", "-p", "no:cacheprovider")
    result = run_command("-m", "pytest", *options, *TESTS, timeout=1200, **lacking)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:]
