"""What `benchmarks.exchange_bytes` measures, on hosts of this machine."""

import pytest
from needs import makes_hosts

from benchmarks.exchange_bytes import Arguments, comparisons_of, measure
from cluster.worker.exchanges import EXACT

SMALL = Arguments(
    exchanges=("allreduce", "bf16", "factors"), workers=(2,), model="alexnet_small", image_size=26, steps=2
)


@makes_hosts
@pytest.mark.slow
@pytest.mark.parametrize("exchange", [*EXACT, "bf16"])
def test_the_interface_counts_what_the_formula_says(exchange):
    measured = measure(SMALL, exchange, 2, 16)
    assert measured["megabytes_per_step"] == pytest.approx(measured["megabytes_by_formula"], rel=0.05)
    assert measured["ratio_to_formula"] == pytest.approx(1, abs=0.05)
    # 66 bytes of headers in packets of 1,514, and acknowledgements
    assert 1.03 < measured["megabytes_per_step_on_a_wire"] / measured["megabytes_per_step"] < 1.10
    assert measured["idle_bytes_per_second"] < 10_000


def test_each_exchange_is_held_against_its_formula_and_the_exact_ones_against_all_reduce():
    arguments = Arguments(batch_sizes=(128, 1024), workers=(2, 4))
    comparisons = comparisons_of(arguments)
    assert len(comparisons) == 2 * 2 * (4 + 2)
    with_bound = [c for c in comparisons if c.to is not None and c.at_most is not None]
    assert {c.of for c in with_bound} == {
        f"{exchange}, {workers} workers, batch 128" for exchange in ("factors", "hybrid") for workers in (2, 4)
    }
    assert all(c.to == c.of.replace(c.of.split(",")[0], "allreduce") for c in comparisons if c.to is not None)
