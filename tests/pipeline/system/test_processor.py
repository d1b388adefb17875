"""What a processor has, from what Linux tells of it."""

import pytest

from pipeline.system.processor import this_processor

ZEN_2 = (
    "processor\t: 0\nmodel name\t: AMD EPYC 7B12\nflags\t\t: fpu avx avx2 fma\n\nprocessor\t: 1\nmodel name\t: other\n"
)
ZEN_4 = "model name\t: AMD EPYC 9B14\nflags\t\t: avx2 avx512f avx512_bf16\n"
SAPPHIRE_RAPIDS = "model name\t: Intel(R) Xeon(R) 8481C\nflags\t\t: avx2 avx512f avx512_bf16 amx_bf16\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"


@pytest.fixture(autouse=True)
def _unlimited(monkeypatch):
    for name in ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)


@pytest.mark.parametrize(
    ("cpuinfo", "has_bfloat16", "text"),
    [
        (ZEN_2, False, "AMD EPYC 7B12 (AVX2, no bfloat16)"),
        (ZEN_4, True, "AMD EPYC 9B14 (AVX2, AVX-512, bfloat16)"),
        (SAPPHIRE_RAPIDS, True, "Intel(R) Xeon(R) 8481C (AVX2, AVX-512, bfloat16, AMX bfloat16)"),
        (GRAVITON_3, True, "aarch64 (NEON, SVE, bfloat16)"),
        ("", False, "aarch64 (no vector instructions known, no bfloat16)"),
    ],
)
def test_the_instructions_are_those_of_linux_flags(cpuinfo, has_bfloat16, text, tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    processor = this_processor(tmp_path / "cpuinfo")
    assert (processor.has_bfloat16, str(processor)) == (has_bfloat16, text)


def test_what_limits_the_libraries_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    (tmp_path / "cpuinfo").write_text(ZEN_4)
    text = "AMD EPYC 9B14 (AVX2, AVX-512, bfloat16, limited by DNNL_MAX_CPU_ISA=AVX2)"
    processor = this_processor(tmp_path / "cpuinfo")
    assert (str(processor), processor.form) == (text, "avx2")


def test_a_system_that_does_not_tell_has_its_architecture(tmp_path):
    processor = this_processor(tmp_path / "nothing")
    assert processor.name and processor.instructions == () and processor.form == ""
