import pytest

from ramo_ray.evaluation.formatting import calls, decimal, duration, percent, signed, whole


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.4249, "0.42 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7_620, "2 h 07 min"),
    ],
)
def test_duration_takes_the_unit_that_suits(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_counts_have_thousands_separators() -> None:
    assert [whole(n) for n in (None, 0, 999, 1_234_567)] == ["–", "0", "999", "1,234,567"]


def test_signed_numbers_have_a_true_minus_and_zero_has_no_sign() -> None:
    assert [signed(x) for x in (0.12345, -0.5, 0.0, -0.0001, float("inf"))] == [
        "+0.123",
        "−0.500",
        "0.000",
        "0.000",
        "–",
    ]


def test_shares_and_decimals() -> None:
    assert [percent(x) for x in (0.625, 1.0, None)] == ["62.5%", "100.0%", "–"]
    assert [decimal(x) for x in (1234.5, -0.1, None)] == ["1,234.500", "−0.100", "–"]
    assert [calls(x) for x in (10, 10.0, 9.75)] == ["10", "10", "9.8"]
