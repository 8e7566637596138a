"""What every group of settings is."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steerheal.bounds import Dose

MOST_LISTED = 64
Doses = Annotated[tuple[Dose, ...], Field(max_length=MOST_LISTED)]


class Settings(BaseModel):
    """Frozen, bounded, and closed to unknown names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="after")
    def _bands_rise(self) -> Self:
        band = getattr(self, "band", None)
        if band is not None and band[0] >= band[1]:
            raise ValueError(f"band must rise: its start {band[0]} is not below its end {band[1]}")
        return self
