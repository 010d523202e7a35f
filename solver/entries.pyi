from solver.milp import FloatArray, IntArray

IS_COMPILED: bool

def taken(
    start: IntArray, column: IntArray, value: FloatArray, which: IntArray
) -> tuple[IntArray, IntArray, FloatArray]: ...
def products(start: IntArray, column: IntArray, value: FloatArray, vector: FloatArray) -> FloatArray: ...
def products_of_rows(
    start: IntArray,
    column: IntArray,
    value: FloatArray,
    other_start: IntArray,
    other_column: IntArray,
    other_value: FloatArray,
    width: int,
) -> FloatArray: ...
def hashes(start: IntArray, column: IntArray, value: FloatArray, factor: IntArray) -> IntArray: ...
def firsts(key: IntArray, group: IntArray, groups: int) -> IntArray: ...
def places(key: IntArray, wanted: IntArray) -> IntArray: ...
