"""Numbers as text for pages and messages: few digits, true minus signs, everyday units."""

import math

MINUS = "−"


def number(value: float | None, digits: int = 3) -> str:
    """``value`` to some significant digits, in its shortest spelling.

    >>> number(0.123456), number(-2), number(0.9), number(12345.6), number(0.000012), number(None)
    ('0.123', '−2', '0.900', '12,346', '1.2e−5', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}".replace("-", MINUS)
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    elif size >= digits:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits - 1 - size}f}"
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """The same with its sign always shown.

    >>> signed(0.5), signed(-0.5), signed(0.0)
    ('+0.500', '−0.500', '0')
    """
    text = number(value, digits)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


def fixed(value: float | None, decimals: int = 2) -> str:
    """``value`` with a fixed number of decimals, for numbers in a column.

    >>> fixed(0.7), fixed(-0.25, 1), fixed(-0.001)
    ('0.70', '−0.2', '0.00')
    """
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{decimals}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", MINUS)


def signed_fixed(value: float | None, decimals: int = 2) -> str:
    """``fixed`` with its sign always shown.

    >>> signed_fixed(1.0), signed_fixed(-0.5), signed_fixed(0.001)
    ('+1.00', '−0.50', '0.00')
    """
    text = fixed(value, decimals)
    return f"+{text}" if value is not None and value > 0 and float(f"{value:.{decimals}f}") != 0 else text


def share(value: float | None) -> str:
    """A fraction as a percentage, for running text: whole, but where that would read as 0% or 100%.

    >>> share(0.843), share(0.9906), share(0.004), share(0.9964), share(0.0002), share(0.9996), share(1.0)
    ('84%', '99%', '0.4%', '99.6%', '<0.1%', '>99.9%', '100%')
    """
    if value is None or not math.isfinite(value):
        return "–"
    percent = 100 * value
    if 0 < percent < 0.05:
        return "<0.1%"
    if 99.95 <= percent < 100:
        return ">99.9%"
    near_edge = 0 < abs(percent) < 0.95 or 99.5 <= percent < 100
    text = f"{percent:.1f}" if near_edge else f"{percent:.0f}"
    return text.replace("-", MINUS) + "%"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter.

    >>> duration(4.21), duration(252), duration(7384), duration(None)
    ('4.2 s', '4 min 12 s', '2 h 3 min', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(value: float | None) -> str:
    """A large count in short.

    >>> count(134515008), count(8192), count(7.6e9)
    ('135 M', '8,192', '7.6 B')
    """
    if value is None or not math.isfinite(value):
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{number(value / size, 2 if value / size < 10 else 3)} {letter}"
    return f"{value:,.0f}"


def plural(amount: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "step"), plural(1500, "step")
    ('1 step', '1,500 steps')
    """
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"
