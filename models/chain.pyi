from models.laws import FloatArray, IntArray

IS_COMPILED: bool

def sums(
    ratio: FloatArray, member: IntArray, states: IntArray, log_load: FloatArray, log_floor: FloatArray
) -> tuple[FloatArray, FloatArray]: ...
def log_products(ratio: FloatArray, states: IntArray) -> FloatArray: ...
def line_sums(
    base: FloatArray,
    slope: FloatArray,
    member: IntArray,
    states: IntArray,
    log_load: FloatArray,
    log_floor: FloatArray,
) -> tuple[FloatArray, FloatArray]: ...
def line_log_products(base: FloatArray, slope: FloatArray, states: IntArray) -> FloatArray: ...
