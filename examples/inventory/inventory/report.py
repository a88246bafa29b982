"""What to order again."""


def to_reorder(reservations, minimums):
    """(sku, missing quantity) for each article of which less is available than its minimum, by name."""
    missing = []
    for sku, minimum in sorted(minimums.items()):
        available = reservations.available(sku)
        if available < minimum:
            missing.append((sku, minimum - available))
    return missing
