"""The GEMM's epilogue on Hopper: the accumulator times its factors, stored through shared memory.

A consumer's accumulator is [ROWS, BM], the output's transpose: a row is a weight row, a column a
token.

The tuple `epilogue` is (alpha, row_scale, bias, out, N, alpha_stride, row_scale_stride, segment).
"""

from triton.experimental import gluon
from triton.experimental.gluon import constexpr_function
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.hopper.pipeline import ROWS

STORE_COLUMNS = gl.constexpr(64)
"""Columns of a tile that are stored at a time: shared memory has no room for more."""

STORE_LAYOUT = gl.constexpr(gl.BlockedLayout([8, 1], [8, 4], [1, 4], [0, 1]))


@gluon.jit
def rows_and_columns(R: gl.constexpr, C: gl.constexpr, layout: gl.constexpr):
    """Row indices [R, 1] and column indices [1, C] in a layout."""
    row = gl.arange(0, R, gl.SliceLayout(1, layout))
    column = gl.arange(0, C, gl.SliceLayout(0, layout))
    return gl.expand_dims(row, 1), gl.expand_dims(column, 0)


@constexpr_function
def prefetches_factors(BM, PER_SM, ALPHA_OF_ROWS=False, STREAM_K=False):
    """Whether a tile's factors are prefetched to registers, which hold them during the mainloop."""
    if PER_SM > 1:
        return BM <= 16
    return (64 if ALPHA_OF_ROWS else 128 if STREAM_K else 256) >= BM


@gluon.jit
def _row_scales(row_scale, stride, first_m, M, BM: gl.constexpr):
    """Load the row scales [1, BM], as nested pairs of halves where BM exceeds STORE_COLUMNS."""
    if BM > STORE_COLUMNS:
        return (
            _row_scales(row_scale, stride, first_m, M, BM // 2),
            _row_scales(row_scale, stride, first_m + BM // 2, M, BM // 2),
        )
    else:
        m = gl.expand_dims(gl.arange(0, BM, gl.SliceLayout(0, STORE_LAYOUT)), 0) + first_m
        return gl.load(row_scale + gl.minimum(m, M - 1) * stride)


@gluon.jit
def load_factors(epilogue, first_m, first_n, M, ALPHA_OF_ROWS: gl.constexpr, BM: gl.constexpr):
    """Load a tile's factors and bias: ((alpha, bias), row_scale), without the absent ones."""
    alpha, row_scale, bias, out, N, alpha_stride, row_scale_stride, segment = epilogue
    n, m = rows_and_columns(ROWS, BM, STORE_LAYOUT)
    n = gl.minimum(n + first_n, N - 1)
    at = alpha + n // segment
    if ALPHA_OF_ROWS:
        at += gl.minimum(m + first_m, M - 1).to(gl.int64) * alpha_stride
    if bias is not None:
        columns = (gl.load(at), gl.load(bias + n).to(gl.float32))
    else:
        columns = (gl.load(at),)  # type: ignore[assignment]
    if row_scale is not None:
        return columns, _row_scales(row_scale, row_scale_stride, first_m, M, BM)
    else:
        return (columns,)


@gluon.jit
def _half(factors, row_scale, H: gl.constexpr):
    """The factors of a tile's lower half (H = 0) or upper half (H = 1) of columns."""
    if row_scale is not None:
        return factors[0], factors[1][H]
    else:
        return factors


@gluon.jit
def store(
    acc, epilogue, factors, first_m, first_n, M, ALPHA_OF_ROWS: gl.constexpr, BM: gl.constexpr
):
    """Store out[m, n] = acc[n, m] * alpha * row_scale (+ bias), for m < M and n < N.

    STORE_COLUMNS at a time go through shared memory. `factors` are the prefetched ones; None loads
    them here, for these columns only.
    """
    alpha, row_scale, bias, out, N, alpha_stride, row_scale_stride, segment = epilogue
    if BM > STORE_COLUMNS:
        lower, upper = acc.reshape([ROWS, 2, BM // 2]).permute([0, 2, 1]).split()
        next_m = first_m + BM // 2
        if factors is None:
            store(lower, epilogue, None, first_m, first_n, M, ALPHA_OF_ROWS, BM // 2)
            store(upper, epilogue, None, next_m, first_n, M, ALPHA_OF_ROWS, BM // 2)
        else:
            below, above = _half(factors, row_scale, 0), _half(factors, row_scale, 1)
            store(lower, epilogue, below, first_m, first_n, M, ALPHA_OF_ROWS, BM // 2)
            store(upper, epilogue, above, next_m, first_n, M, ALPHA_OF_ROWS, BM // 2)
    else:
        acc = gl.convert_layout(acc, STORE_LAYOUT)
        if factors is None:
            factors = load_factors(epilogue, first_m, first_n, M, ALPHA_OF_ROWS, BM)
        factor = factors[0][0]
        if row_scale is not None:
            factor = factor * factors[1]
        if bias is not None:
            added, _ = gl.broadcast(factors[0][1], acc)
            factor, _ = gl.broadcast(factor, acc)
            acc = gl.fma(acc, factor, added)
        else:
            acc = acc * factor
        n, m = rows_and_columns(ROWS, BM, STORE_LAYOUT)
        n += first_n
        m += first_m
        at = out + m.to(gl.int64) * N + n
        gl.store(at, acc.to(out.dtype.element_ty), mask=(m < M) & (n < N))
