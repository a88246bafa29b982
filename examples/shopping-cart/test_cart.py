import unittest

from cart import Cart


def cart_worth(*prices):
    cart = Cart()
    for number, price in enumerate(prices):
        cart.add(f"article-{number}", price)
    return cart


class CartTest(unittest.TestCase):
    def test_empty_cart_costs_nothing(self):
        self.assertEqual(Cart().total(), 0)

    def test_small_order_pays_shipping(self):
        self.assertEqual(cart_worth(1_000, 500).total(), 1_990)

    def test_same_article_twice_adds_up(self):
        cart = Cart()
        cart.add("mug", 899)
        cart.add("mug", 899, 2)
        self.assertEqual(cart.subtotal(), 2_697)

    def test_quantity_is_limited(self):
        cart = Cart()
        cart.add("mug", 899, 20)
        with self.assertRaises(ValueError):
            cart.add("mug", 899)

    def test_no_discount_below_the_first_tier(self):
        self.assertEqual(cart_worth(4_999).discount_percent(), 0)

    def test_discount_between_tiers(self):
        self.assertEqual(cart_worth(6_000, 3_000).discount_percent(), 5)

    def test_exactly_the_first_tier(self):
        self.assertEqual(cart_worth(5_000).total(), 4_750)

    def test_exactly_the_highest_tier(self):
        self.assertEqual(cart_worth(20_000, 5_000).discount_percent(), 15)


if __name__ == "__main__":
    unittest.main()
