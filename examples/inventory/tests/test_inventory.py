from inventory.report import to_reorder
from inventory.reservations import Reservations
from inventory.stock import OutOfStock, Stock


def warehouse():
    stock = Stock()
    stock.receive("lamp", 10)
    stock.receive("desk", 2)
    return Reservations(stock)


def test_reserved_articles_are_not_available():
    reservations = warehouse()
    reservations.reserve("lamp", 4, now=0)
    assert reservations.available("lamp") == 6
    assert reservations.stock.on_shelf("lamp") == 10


def test_more_than_available_cannot_be_reserved():
    reservations = warehouse()
    reservations.reserve("desk", 2, now=0)
    try:
        reservations.reserve("desk", 1, now=0)
    except OutOfStock as error:
        assert "0 available" in str(error)
    else:
        raise AssertionError("the reservation should have been refused")


def test_shipping_takes_from_the_shelf():
    reservations = warehouse()
    reservations.ship(reservations.reserve("lamp", 4, now=0))
    assert reservations.stock.on_shelf("lamp") == 6
    assert reservations.available("lamp") == 6


def test_nothing_is_released_before_its_time():
    reservations = warehouse()
    reservations.reserve("lamp", 4, now=0, hold_seconds=60)
    assert reservations.release_expired(now=59) == 0
    assert reservations.available("lamp") == 6


def test_expired_reservations_are_released():
    reservations = warehouse()
    reservations.reserve("lamp", 4, now=0, hold_seconds=60)
    reservations.reserve("lamp", 1, now=0, hold_seconds=600)
    reservations.reserve("desk", 2, now=0, hold_seconds=60)
    assert reservations.release_expired(now=60) == 2
    assert reservations.available("lamp") == 9
    assert reservations.available("desk") == 2


def test_report_names_what_is_missing():
    reservations = warehouse()
    reservations.reserve("lamp", 8, now=0)
    assert to_reorder(reservations, {"lamp": 5, "desk": 2, "chair": 4}) == [("chair", 4), ("lamp", 3)]
