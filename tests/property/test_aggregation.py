"""Laws of the weighted mean, against exact arithmetic, and of the lottery and the vectors."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordinator import aggregation
from coordinator.aggregation import Contribution, apply_delta, weighted_mean
from coordinator.cohort import select_cohort, wanted_count
from coordinator.config import RoundsConfig
from fedtide.messages import Encoding
from fedtide.vectors import Vector, decode_vector, encode_vector

ELEMENTS = 5
deltas = hnp.arrays(np.float32, ELEMENTS, elements=st.floats(-1e6, 1e6, width=32))
contributions = st.lists(
    st.tuples(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 10**6), deltas),
    min_size=1,
    max_size=8,
    unique_by=lambda part: part[0],
)
Named = list[tuple[str, int, Vector]]


def mean_of(parts: Named) -> Vector:
    """As the store hands them over: in order of device id."""
    ordered = sorted(parts, key=lambda part: part[0])
    return weighted_mean((Contribution(n, delta) for _, n, delta in ordered), ELEMENTS)


def exact_mean(parts: Named, element: int) -> Fraction:
    total = sum(n for _, n, _ in parts)
    return sum(
        (Fraction(n, total) * Fraction(float(delta[element])) for _, n, delta in parts), Fraction(0)
    )


def test_the_product_of_weight_and_delta_is_not_rounded_to_float32() -> None:
    """5738 x 1216 + 515 x 35503 = 25,261,453, divided by 6,253: 4039.893331…, as float32 below."""
    parts = [Contribution(5738, np.full(1, 1216, np.float32))]
    parts += [Contribution(515, np.full(1, 35503, np.float32))]
    assert weighted_mean(parts, 1)[0] == np.float32(25_261_453 / 6_253)
    large = Contribution(10**6, np.full(1, 1e35, np.float32))
    assert weighted_mean([large, large], 1)[0] == np.float32(1e35)


@given(contributions)
def test_it_is_the_exact_mean_rounded_once(parts: Named) -> None:
    """float64 sums of at most 8 terms err by less than 2^-48 of their size; float32 by 2^-24."""
    mean = mean_of(parts)
    for element in range(ELEMENTS):
        exact = exact_mean(parts, element)
        size = max(abs(float(delta[element])) for _, _, delta in parts)
        bound = float(np.spacing(np.float32(abs(float(exact))))) + size * 2.0**-48
        assert abs(float(mean[element]) - float(exact)) <= bound


@given(contributions, st.randoms(use_true_random=False))
def test_the_order_of_arrival_leaves_no_trace(parts: Named, random: object) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mean_of(shuffled).tobytes() == mean_of(parts).tobytes()


@pytest.mark.parametrize("block", [1, 3, ELEMENTS, 1 << 20])
@given(contributions)
def test_the_blocks_of_the_sum_leave_no_trace(block: int, parts: Named) -> None:
    expected = mean_of(parts).tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "BLOCK_VALUES", block)
        assert mean_of(parts).tobytes() == expected


@given(contributions, st.integers(0, 20))
def test_powers_of_two_scale_it_exactly(parts: Named, exponent: int) -> None:
    scaled = [(name, n * 2**exponent, delta) for name, n, delta in parts]
    assert mean_of(scaled).tobytes() == mean_of(parts).tobytes()


@given(deltas, st.integers(1, 10**6))
def test_the_mean_of_one_is_itself(delta: Vector, examples: int) -> None:
    np.testing.assert_allclose(mean_of([("a", examples, delta)]), delta, rtol=1e-7)


@given(contributions)
def test_it_lies_between_the_least_and_the_most(parts: Named) -> None:
    mean, every = mean_of(parts), np.stack([delta for _, _, delta in parts])
    slack = np.spacing(np.abs(every).max(axis=0))
    assert (mean >= every.min(axis=0) - slack).all()
    assert (mean <= every.max(axis=0) + slack).all()


@given(deltas, deltas)
def test_a_delta_leads_from_the_old_to_the_new(model: Vector, delta: Vector) -> None:
    expected = [np.float32(float(w) + float(d)) for w, d in zip(model, delta, strict=True)]
    np.testing.assert_array_equal(apply_delta(model, delta), expected)


@pytest.mark.parametrize(
    "parts",
    [[], [Contribution(0, np.zeros(5, np.float32))], [Contribution(1, np.zeros(4, np.float32))]],
)
def test_what_cannot_be_averaged(parts: list[Contribution]) -> None:
    with pytest.raises(ValueError):
        weighted_mean(parts, ELEMENTS)


# ---- vectors ----


@given(
    hnp.arrays(
        np.float32,
        st.integers(0, 20),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    )
)
def test_f32_is_exact(vector: Vector) -> None:
    decoded = decode_vector(encode_vector(vector, "f32"), "f32", len(vector))
    assert decoded.tobytes() == vector.tobytes()


@given(hnp.arrays(np.float32, 7, elements=st.floats(-65504, 65504, width=32)))
def test_f16_has_eleven_bits(vector: Vector) -> None:
    decoded = decode_vector(encode_vector(vector, "f16"), "f16", 7)
    # Half a unit in the last of 11 bits, or of the smallest subnormal, 2^-24.
    assert (np.abs(decoded - vector) <= np.maximum(np.abs(vector) * 2.0**-11, 2.0**-25)).all()


@given(st.floats(65536, 2.0**100, width=32))
def test_f16_refuses_what_it_cannot_hold(value: float) -> None:
    with pytest.raises(OverflowError):
        encode_vector(np.array([0, value], dtype=np.float32), "f16")


@pytest.mark.parametrize("encoding", ["f32", "f16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.1e30, -1.1e30])
def test_what_no_receiver_would_take_is_not_encoded(value: float, encoding: Encoding) -> None:
    vector = np.array([0, value, 1], dtype=np.float32)
    with pytest.raises(OverflowError, match=encoding):
        encode_vector(vector, encoding)
    with pytest.raises(ValueError, match="value 1"):
        decode_vector(vector.tobytes(), "f32", 3)


# ---- the lottery ----

fleets = st.sets(st.text("abcxyz0123", min_size=1, max_size=6), min_size=1, max_size=30)


@given(fleets, st.integers(1, 30), st.floats(1, 3), st.integers(0, 99), st.integers(1, 99))
def test_a_cohort(online: set[str], wanted: int, over: float, seed: int, round_id: int) -> None:
    cohort = select_cohort(online, wanted, over, seed, round_id)
    assert cohort == tuple(sorted(set(cohort)))
    assert set(cohort) <= online
    assert len(cohort) == min(math.ceil(wanted * over - 1e-9), len(online))
    tickets = {n: hashlib.sha256(f"{seed}/{round_id}/{n}".encode()).digest() for n in online}
    drawn = sorted(online, key=tickets.__getitem__)[: len(cohort)]
    assert set(cohort) == set(drawn), "as documented, so that anybody can repeat it"
    backwards = sorted(online, reverse=True)
    assert select_cohort([*backwards, *backwards], wanted, over, seed, round_id) == cohort
    # Somebody who leaves without having been drawn changes nothing.
    for idle in sorted(online - set(cohort)):
        assert select_cohort(online - {idle}, wanted, over, seed, round_id) == cohort


def test_every_device_has_its_turn() -> None:
    """1,000 rounds of 5 out of 20: 250 each, standard deviation sqrt(1000 x 1/4 x 3/4) = 13.7."""
    fleet = [f"pi-{number}" for number in range(20)]
    turns = dict.fromkeys(fleet, 0)
    for round_id in range(1000):
        for name in select_cohort(fleet, 5, 1.0, 0, round_id):
            turns[name] += 1
    assert all(abs(count - 250) < 5 * 13.7 for count in turns.values())


@given(st.integers(1, 50), st.floats(0.01, 1), st.integers(1, 5))
def test_the_fraction_of_the_paper(online: int, fraction: float, quorum: int) -> None:
    """m = max(C K, 1), and never below the quorum while there are as many devices."""
    wanted = wanted_count(RoundsConfig(cohort_fraction=fraction, quorum=quorum), online)
    assert wanted == min(max(round(fraction * online), quorum, 1), online)
    assert wanted_count(RoundsConfig(cohort_size=quorum), online) == min(quorum, online)
