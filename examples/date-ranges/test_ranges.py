from datetime import date

from ranges import DateRange, days_left, overlap_days, overlaps, working_days

EASTER = DateRange(date(2024, 3, 29), date(2024, 4, 1))


def test_a_single_day_is_a_range():
    assert DateRange(date(2024, 3, 29), date(2024, 3, 29)).days() == [date(2024, 3, 29)]


def test_first_and_last_day_belong_to_the_range():
    assert date(2024, 3, 29) in EASTER
    assert date(2024, 4, 1) in EASTER
    assert date(2024, 4, 2) not in EASTER


def test_ranges_that_share_one_day_overlap():
    assert overlaps(EASTER, DateRange(date(2024, 4, 1), date(2024, 4, 5)))


def test_ranges_side_by_side_do_not_overlap():
    assert not overlaps(EASTER, DateRange(date(2024, 4, 2), date(2024, 4, 5)))


def test_sharing_one_day_is_an_overlap_of_one_day():
    assert overlap_days(EASTER, DateRange(date(2024, 4, 1), date(2024, 4, 5))) == 1


def test_overlap_with_itself_is_the_whole_range():
    assert overlap_days(EASTER, EASTER) == 4


def test_no_overlap_between_distant_ranges():
    assert overlap_days(EASTER, DateRange(date(2024, 7, 1), date(2024, 7, 14))) == 0


def test_weekends_are_no_working_days():
    assert working_days(EASTER) == 2


def test_days_left_after_two_holidays():
    summer = DateRange(date(2024, 7, 1), date(2024, 7, 14))
    assert days_left(30, [EASTER, summer]) == 18
