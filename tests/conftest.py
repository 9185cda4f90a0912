"""What pytest does for every file of tests here."""


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: one that began last would keep one core alone busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable
