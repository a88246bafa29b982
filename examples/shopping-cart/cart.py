"""A shopping cart. All amounts are whole cents."""

# (subtotal that must be reached, percent off), smallest first
DISCOUNT_TIERS = [(5_000, 5), (10_000, 10), (25_000, 15)]
FREE_SHIPPING_FROM = 4_000
SHIPPING = 490
MAX_QUANTITY = 20


class Cart:
    def __init__(self):
        self.lines = {}

    def add(self, sku, price, quantity=1):
        """Put `quantity` pieces of an article into the cart."""
        if quantity < 1:
            raise ValueError(f"quantity must be at least 1, not {quantity}")
        _, present = self.lines.get(sku, (price, 0))
        if present + quantity > MAX_QUANTITY:
            raise ValueError(f"at most {MAX_QUANTITY} pieces of {sku}")
        self.lines[sku] = (price, present + quantity)

    def subtotal(self):
        return sum(price * quantity for price, quantity in self.lines.values())

    def discount_percent(self):
        """The percentage of the highest tier that the subtotal reaches."""
        percent = 0
        for minimum, tier_percent in DISCOUNT_TIERS:
            if self.subtotal() > minimum:
                percent = tier_percent
        return percent

    def discount(self):
        """Rounded half up to a whole cent."""
        return (self.subtotal() * self.discount_percent() + 50) // 100

    def total(self):
        """What the customer pays: subtotal, less discount, plus shipping."""
        if not self.lines:
            return 0
        shipping = 0 if self.subtotal() >= FREE_SHIPPING_FROM else SHIPPING
        return self.subtotal() - self.discount() + shipping
