from collections.abc import Callable

from solver.milp import FloatArray, IntArray

IS_COMPILED: bool

class Labels:
    def __init__(
        self,
        start: IntArray,
        worth: FloatArray,
        usage: FloatArray,
        limits: FloatArray,
        duals: FloatArray,
        expected: FloatArray,
        charge: FloatArray,
    ) -> None: ...
    def search(
        self, cutoff: float, width: int, share: FloatArray, left_s: Callable[[], float]
    ) -> tuple[IntArray | None, float]: ...
