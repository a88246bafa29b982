import unittest
from datetime import datetime

from logparser import count_levels, errors_by_component, most_common_error, parse, parse_line

LOG = """\
2024-05-01T12:00:00 INFO web started
2024-05-01T12:00:03 ERROR payment card declined
2024-05-01T12:00:04 ERROR payment card reader offline
Traceback (most recent call last):
  File "payment.py", line 12, in charge
2024-05-01T12:00:09 ERROR payment card reader offline
2024-05-01T12:01:00 WARNING web slow answer
2024-05-01T12:02:00 ERROR mail mailbox full
"""


class ParseLineTest(unittest.TestCase):
    def test_time_level_and_component(self):
        entry = parse_line("2024-05-01T12:00:00 INFO web started")
        self.assertEqual((entry.time, entry.level, entry.component), (datetime(2024, 5, 1, 12), "INFO", "web"))

    def test_message_is_the_rest_of_the_line(self):
        entry = parse_line("2024-05-01T12:00:03 ERROR payment card declined for order 17")
        self.assertEqual(entry.message, "card declined for order 17")

    def test_other_lines_are_no_entries(self):
        self.assertIsNone(parse_line('  File "payment.py", line 12, in charge'))
        self.assertIsNone(parse_line("yesterday ERROR payment card declined"))
        self.assertIsNone(parse_line(""))


class ReportTest(unittest.TestCase):
    def test_levels_are_counted(self):
        self.assertEqual(count_levels(parse(LOG)), {"INFO": 1, "WARNING": 1, "ERROR": 4})

    def test_components_with_most_errors_come_first(self):
        self.assertEqual(errors_by_component(parse(LOG)), [("payment", 3), ("mail", 1)])

    def test_most_common_error(self):
        self.assertEqual(most_common_error(parse(LOG)), "card reader offline")

    def test_no_error(self):
        self.assertIsNone(most_common_error(parse("2024-05-01T12:00:00 INFO web started")))


if __name__ == "__main__":
    unittest.main()
