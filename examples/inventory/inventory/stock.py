"""What lies on the shelves."""


class OutOfStock(Exception):
    pass


class Stock:
    def __init__(self):
        self.quantities = {}

    def receive(self, sku, quantity):
        if quantity <= 0:
            raise ValueError(f"cannot receive {quantity} of {sku}")
        self.quantities[sku] = self.quantities.get(sku, 0) + quantity

    def remove(self, sku, quantity):
        on_shelf = self.quantities.get(sku, 0)
        if quantity > on_shelf:
            raise OutOfStock(f"{sku}: {quantity} wanted, {on_shelf} on the shelf")
        self.quantities[sku] = on_shelf - quantity

    def on_shelf(self, sku):
        return self.quantities.get(sku, 0)
