"""Reservations hold articles back for a customer until they expire."""

from dataclasses import dataclass

from inventory.stock import OutOfStock


@dataclass
class Reservation:
    sku: str
    quantity: int
    expires_at: int


class Reservations:
    def __init__(self, stock):
        self.stock = stock
        self.open = {}
        self.next_id = 1

    def reserve(self, sku, quantity, now, hold_seconds=600):
        """Hold articles back and return the reservation's id."""
        if quantity > self.available(sku):
            raise OutOfStock(f"{sku}: {quantity} wanted, {self.available(sku)} available")
        reservation_id = self.next_id
        self.next_id += 1
        self.open[reservation_id] = Reservation(sku, quantity, now + hold_seconds)
        return reservation_id

    def available(self, sku):
        """What is on the shelf and not held back for anyone."""
        held = sum(item.quantity for item in self.open.values() if item.sku == sku)
        return self.stock.on_shelf(sku) - held

    def ship(self, reservation_id):
        """Take the reserved articles from the shelf."""
        reservation = self.open.pop(reservation_id)
        self.stock.remove(reservation.sku, reservation.quantity)

    def release_expired(self, now):
        """Drop the reservations that are past their time and return how many there were."""
        released = 0
        for reservation_id, reservation in self.open.items():
            if reservation.expires_at <= now:
                del self.open[reservation_id]
                released += 1
        return released
