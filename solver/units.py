"""Factors between the units of the wire, of sentences and tables, and those inside: nowhere else.

On the wire milliseconds, requests per minute, gigabytes and cents per hour; inside seconds, requests per
second, bytes and the input's money unit per hour; people read prices in dollars.
"""

MS_PER_S = 1000.0
S_PER_MIN = 60.0
BYTES_PER_GB = 1e9
CENTS_PER_DOLLAR = 100.0


def in_ms(seconds: float) -> float:
    """Seconds as milliseconds."""
    return seconds * MS_PER_S


def in_rpm(rps: float) -> float:
    """Requests per second as requests per minute."""
    return rps * S_PER_MIN


def from_rpm(rpm: float) -> float:
    """Requests per minute as requests per second."""
    return rpm / S_PER_MIN


def in_dollars(cents: float) -> float:
    """Cents as dollars."""
    return cents / CENTS_PER_DOLLAR


def in_cents(dollars: float) -> float:
    """Dollars as cents."""
    return dollars * CENTS_PER_DOLLAR
