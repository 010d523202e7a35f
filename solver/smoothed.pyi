from collections.abc import Callable

from solver.milp import FloatArray, IntArray

IS_COMPILED: bool

class Smoothed:
    def __init__(
        self,
        start: IntArray,
        worth: FloatArray,
        usage: FloatArray,
        limits: FloatArray,
        scale: float,
        steps: int,
        balanced: float,
        room: float,
        tiny: float,
    ) -> None: ...
    def bound(self, duals: FloatArray) -> float: ...
    def look(self, reach: float, change: float) -> None: ...
    def widen(self, reach: float, value: float) -> bool: ...
    def maximise(
        self, duals: FloatArray, most: FloatArray, t: float, left_s: Callable[[], float]
    ) -> tuple[FloatArray, bool]: ...
