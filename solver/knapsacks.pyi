from collections.abc import Callable

from solver.milp import FloatArray, IntArray

IS_COMPILED: bool

class Assignment:
    def __init__(
        self,
        server: IntArray,
        pool_start: IntArray,
        weight: IntArray,
        cost: FloatArray,
        capacity: IntArray,
        multipliers: FloatArray,
    ) -> None: ...
    def bounds(self, multipliers: FloatArray) -> tuple[float, FloatArray]: ...
    def solve(
        self, value: float, step: float, most_nodes: int, left_s: Callable[[], float]
    ) -> tuple[IntArray | None, float, float, FloatArray, int]: ...
