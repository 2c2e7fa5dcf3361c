"""A tile's way out on Hopper: sums times their factors, by way of shared memory.

A consumer's sums are [ROWS, BM], of one weight row a row and one token a column: the output's
transpose.
"""

from triton.experimental import gluon
from triton.experimental.gluon import constexpr_function
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.hopper.pipeline import ROWS

PART = gl.constexpr(64)
"""Of a tile's columns, as many as are stored at once."""

STORED = gl.constexpr(gl.BlockedLayout([8, 1], [8, 4], [1, 4], [0, 1]))


@gluon.jit
def rows_and_columns(R: gl.constexpr, C: gl.constexpr, layout: gl.constexpr):
    row = gl.arange(0, R, gl.SliceLayout(1, layout))
    column = gl.arange(0, C, gl.SliceLayout(0, layout))
    return gl.expand_dims(row, 1), gl.expand_dims(column, 0)


@constexpr_function
def early(BM, PER_SM, ALPHA_OF_ROWS=False, SPLIT=False):
    """Whether registers hold a tile's factors while it is multiplied."""
    if PER_SM > 1:
        return BM <= 16
    return (64 if ALPHA_OF_ROWS else 128 if SPLIT else 256) >= BM


@gluon.jit
def _row_scales(row_scale, stride, first_m, M, BM: gl.constexpr):
    """[1, BM]; of more than a part of a tile, of its lower half and of its upper one."""
    if BM > PART:
        return (
            _row_scales(row_scale, stride, first_m, M, BM // 2),
            _row_scales(row_scale, stride, first_m + BM // 2, M, BM // 2),
        )
    else:
        m = gl.expand_dims(gl.arange(0, BM, gl.SliceLayout(0, STORED)), 0) + first_m
        return gl.load(row_scale + gl.minimum(m, M - 1) * stride)


@gluon.jit
def load_factors(ends, first_m, first_n, M, ALPHA_OF_ROWS: gl.constexpr, BM: gl.constexpr):
    """What a tile's sums are multiplied by, and the bias: ((alpha, bias), row_scale), without those
    that there are not.
    """
    alpha, row_scale, bias, out, N, alpha_stride, row_scale_stride, segment = ends
    n, m = rows_and_columns(ROWS, BM, STORED)
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
    """Of a tile's factors those of its lower half, or of its upper one."""
    if row_scale is not None:
        return factors[0], factors[1][H]
    else:
        return factors


@gluon.jit
def store(acc, ends, factors, first_m, first_n, M, ALPHA_OF_ROWS: gl.constexpr, BM: gl.constexpr):
    """out[m, n] = acc[n, m] * alpha * row_scale (+ bias), for m < M and n < N; as gemm.store. One
    part after the other goes through shared memory, of which there is little; their factors come
    together, if registers hold them.
    """
    alpha, row_scale, bias, out, N, alpha_stride, row_scale_stride, segment = ends
    if BM > PART:
        lower, upper = acc.reshape([ROWS, 2, BM // 2]).permute([0, 2, 1]).split()
        next_m = first_m + BM // 2
        if factors is None:
            store(lower, ends, None, first_m, first_n, M, ALPHA_OF_ROWS, BM // 2)
            store(upper, ends, None, next_m, first_n, M, ALPHA_OF_ROWS, BM // 2)
        else:
            below, above = _half(factors, row_scale, 0), _half(factors, row_scale, 1)
            store(lower, ends, below, first_m, first_n, M, ALPHA_OF_ROWS, BM // 2)
            store(upper, ends, above, next_m, first_n, M, ALPHA_OF_ROWS, BM // 2)
    else:
        acc = gl.convert_layout(acc, STORED)
        if factors is None:
            factors = load_factors(ends, first_m, first_n, M, ALPHA_OF_ROWS, BM)
        factor = factors[0][0]
        if row_scale is not None:
            factor = factor * factors[1]
        if bias is not None:
            added, _ = gl.broadcast(factors[0][1], acc)
            factor, _ = gl.broadcast(factor, acc)
            acc = gl.fma(acc, factor, added)
        else:
            acc = acc * factor
        n, m = rows_and_columns(ROWS, BM, STORED)
        n += first_n
        m += first_m
        at = out + m.to(gl.int64) * N + n
        gl.store(at, acc.to(out.dtype.element_ty), mask=(m < M) & (n < N))
