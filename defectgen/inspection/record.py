"""A line of an inspection's `report.jsonl`."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Record(BaseModel):
    """The verdict on an image, or the reason why there is none (or no mask).

    Lines also have `contours`, which are long, and which nothing here reads.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    image: str = Field(min_length=1)
    """The path as given. Bytes that are not UTF-8 are escaped as `text.recorded` says."""
    category: str | None = None
    """Of a labeled image: `normal`, or the category of its defects; several are separated by semicolons."""
    error: str | None = None
    defective: bool | None = None
    score: float | None = Field(default=None, allow_inf_nan=False)
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    border: int | None = None
    reference: str | None = None
    """What the image was compared with: the golden images' folder, or the model."""
    scorer: str | None = None
    """The kind of score (`inspection.scores.Scorer.name`)."""
    floor: float | None = None
    """The least score of a defect's pixel."""
    boxes: list[tuple[int, int, int, int]] = []
    areas: list[int] = []
    mask: str | None = None
    overlay: str | None = None
    thumbnail: str | None = None
    stamp: str | None = None
    """Size and time of the image's file, and of its golden image: if they differ now, the verdict is out of date."""

    @model_validator(mode="after")
    def _says_something(self) -> "Record":
        if self.defective is None and self.error is None:
            raise ValueError("has neither a verdict nor an error")
        return self

    @property
    def files(self) -> dict[str, str]:
        """The names of the image's files in the report, by the folders that hold them."""
        named = {"masks": self.mask, "overlays": self.overlay, "thumbnails": self.thumbnail}
        return {folder: name for folder, name in named.items() if name is not None}
