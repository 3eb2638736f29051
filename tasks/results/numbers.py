"""How scores are written for people."""


def number(value: float) -> str:
    """A score with three decimals, or with three digits where these would show nothing of it."""
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.2e}"
