"""An interrupt line that counts."""


class FakeIrq:
    """Implements interfaces.IrqLine; ``count`` says how often it was raised."""

    def __init__(self) -> None:
        self.count = 0

    def signal(self) -> None:
        self.count += 1
