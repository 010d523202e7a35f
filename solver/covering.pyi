from collections.abc import Callable, Sequence

from solver.milp import BoolArray, FloatArray, IntArray

IS_COMPILED: bool

class Covering:
    def size(self) -> int: ...
    def search(
        self,
        option: IntArray,
        by_option: Sequence[FloatArray],
        numbers: Sequence[IntArray],
        by_server: Sequence[FloatArray],
        limits: Sequence[IntArray | BoolArray],
        rounding: Sequence[float],
        is_partial: bool,
        merges: bool,
        most_states: int,
        most_plans: int,
        left_s: Callable[[], float],
    ) -> tuple[
        FloatArray,
        FloatArray,
        tuple[IntArray, FloatArray, FloatArray, IntArray, IntArray, IntArray, FloatArray],
    ]: ...
