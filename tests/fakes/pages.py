"""Pages in our own memory: what a guest would read without an exit."""


class FakePages:
    """Implements interfaces.Pages."""

    def __init__(self, size: int = 4096) -> None:
        self.size = size
        self.view = memoryview(bytearray(size))
