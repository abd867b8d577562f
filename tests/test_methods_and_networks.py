"""The page of methods and networks says what is so."""

from tests import methods_and_networks


def test_the_page_is_the_table():
    page = methods_and_networks.PAGE.read_text()
    found = page.partition(methods_and_networks.MARK)[2].lstrip("\n")
    assert found == methods_and_networks.table(), "write it anew: python -m tests.methods_and_networks"
