"""See the package."""


class VisionDataset:
    """A base class for streaming's vision datasets, which are not used here."""
