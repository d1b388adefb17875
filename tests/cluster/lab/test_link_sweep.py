"""A link is measured, and accepted if latency + bytes / bandwidth fits it."""

import pytest
from needs import makes_hosts

from cluster.exchange.cost import Link
from cluster.lab import link_sweep
from cluster.lab.hosts import hosts
from cluster.lab.link_sweep import LinkFit, accepted_link, fit_link, sweep_link
from cluster.lab.shaped_link import ShapedLink
from pipeline.command import InputError


def test_a_link_that_fits_its_model_is_accepted():
    sizes = [1e5, 1e6, 1e7]
    fit = fit_link(sizes, [0.001 + size / 1e8 for size in sizes])
    assert fit.link.latency_seconds == pytest.approx(0.001) and fit.link.bytes_per_second == pytest.approx(1e8)
    assert fit.largest_deviation < 1e-9 and fit.is_accepted


def test_another_link_is_not():
    # Small messages pass at once, as through a bucket that is never empty.
    fit = fit_link([1e5, 1e6, 1e7], [0.0001, 0.009, 0.1])
    assert fit.link.latency_seconds == 0 and fit.largest_deviation > 0.05 and not fit.is_accepted


def test_a_link_that_does_not_fit_its_model_is_refused(monkeypatch):
    fits = iter([LinkFit(Link(0, 1e9), 0.3), LinkFit(Link(0, 1e9), 0.2), LinkFit(Link(0, 1e9), 0.04)])
    monkeypatch.setattr(link_sweep, "sweep_link", lambda lab: next(fits))
    assert accepted_link(None).largest_deviation == 0.04
    monkeypatch.setattr(link_sweep, "sweep_link", lambda lab: LinkFit(Link(0, 1e9), 0.123))
    with pytest.raises(InputError, match=r"within 5% \(12\.3% at best\)"):
        accepted_link(None)


@makes_hosts
def test_a_link_between_fewer_than_two_hosts_is_not_measured():
    with hosts(1) as lab, pytest.raises(InputError, match="at least 2 hosts"):
        sweep_link(lab)


@makes_hosts
@pytest.mark.slow
@pytest.mark.parametrize("num_hosts", [2, 3])
def test_no_link_is_faster_than_it_is_shaped(num_hosts):
    # However busy the machine is; that it is not much slower is for the fit to say, where a measurement relies on it.
    link = ShapedLink(gigabits_per_second=0.5)
    with hosts(num_hosts, link) as lab:
        fit = sweep_link(lab)
    assert 0.1 * link.bytes_per_second < fit.link.bytes_per_second < 1.02 * link.bytes_per_second
