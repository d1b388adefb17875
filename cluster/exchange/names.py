"""Names of the exact exchanges, which a launch may choose. Loads no torch."""

from typing import Literal

Strategy = Literal["allreduce", "factors", "hybrid"]
StrategyChoice = Literal["auto", "allreduce", "factors", "hybrid"]
