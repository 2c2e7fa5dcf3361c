/* Every elementwise operation, once. engine.c includes this file twice: to define the functions and
   to list their names. Python asks for an operation by its name.

   ONE(name, R, A, expression)              a result of type R from a, the lane's source
   TWO(name, R, A, B, expression)           from a and b
   THREE(name, R, A, B, C, expression)      from a, b and c
   FOUR(name, R, A, B, C, D, expression)    from a, b, c and e
   ONE64, TWO64, THREE64                    the same for each half of the lanes' registers
   TEST(name, A, expression)                a predicate from a and b

   `i` is the lane, and `immediate` comes from the instruction. */

#define INTEGERS(N, U, S)                                                                          \
  TWO(add_##U, U, U, U, (U)(a + b))                                                                \
  TWO(sub_##U, U, U, U, (U)(a - b))                                                                \
  TWO(min_##U, U, U, U, a < b ? a : b)                                                             \
  TWO(max_##U, U, U, U, a > b ? a : b)                                                             \
  TWO(min_##S, S, S, S, a < b ? a : b)                                                             \
  TWO(max_##S, S, S, S, a > b ? a : b)                                                             \
  ONE(neg_##S, U, U, (U)(0 - a))                                                                   \
  ONE(abs_##S, U, U, (S)a < 0 ? (U)(0 - a) : a)                                                    \
  TWO(div_##U, U, U, U, div_##U(a, b))                                                             \
  TWO(div_##S, U, U, U, div_##S(a, b))                                                             \
  TWO(rem_##U, U, U, U, rem_##U(a, b))                                                             \
  TWO(rem_##S, U, U, U, rem_##S(a, b))                                                             \
  TWO(and_##U, U, U, U, a &b)                                                                      \
  TWO(or_##U, U, U, U, a | b)                                                                      \
  TWO(xor_##U, U, U, U, a ^ b)                                                                     \
  ONE(not_##U, U, U, (U)~a)                                                                        \
  ONE(mov_##U, U, U, a)                                                                            \
  TWO(shl_##U, U, U, u32, b >= N ? 0 : (U)((u64)a << (b & 63)))                                    \
  TWO(shr_##U, U, U, u32, b >= N ? 0 : (U)((u64)a >> (b & 63)))                                    \
  TWO(shr_##S, S, S, u32, (S)(a >> (b >= N ? N - 1 : b)))                                          \
  TEST(eq_##U, U, a == b)                                                                          \
  TEST(ne_##U, U, a != b)                                                                          \
  TEST(lt_##U, U, a < b)                                                                           \
  TEST(le_##U, U, a <= b)                                                                          \
  TEST(gt_##U, U, a > b)                                                                           \
  TEST(ge_##U, U, a >= b)                                                                          \
  TEST(lt_##S, S, a < b)                                                                           \
  TEST(le_##S, S, a <= b)                                                                          \
  TEST(gt_##S, S, a > b)                                                                           \
  TEST(ge_##S, S, a >= b)

INTEGERS(16, u16, s16)
INTEGERS(32, u32, s32)
INTEGERS(64, u64, s64)
ONE(mov_u8, u8, u8, a)

/* Products: the lower half, the upper half, or both; then the same with an addend. */
#define PRODUCTS(N, U, S, UW, SW)                                                                  \
  TWO(mul_lo_##U, U, U, U, (U)((UW)a * b))                                                         \
  TWO(mul_hi_##U, U, U, U, (U)((UW)a * b >> N))                                                    \
  TWO(mul_hi_##S, S, S, S, (S)((SW)a * b >> N))                                                    \
  THREE(mad_lo_##U, U, U, U, U, (U)((UW)a * b + c))                                                \
  THREE(mad_hi_##U, U, U, U, U, (U)(((UW)a * b >> N) + c))                                         \
  THREE(mad_hi_##S, U, S, S, U, (U)((U)((SW)a * b >> N) + c))
#define WIDE_PRODUCTS(U, S, UW, SW)                                                                \
  TWO(mul_wide_##U, UW, U, U, (UW)a *b)                                                            \
  TWO(mul_wide_##S, SW, S, S, (SW)a *b)                                                            \
  THREE(mad_wide_##U, UW, U, U, UW, (UW)a *b + c)                                                  \
  THREE(mad_wide_##S, UW, S, S, UW, (UW)((SW)a * b) + c)

PRODUCTS(16, u16, s16, u32, s32)
PRODUCTS(32, u32, s32, u64, s64)
PRODUCTS(64, u64, s64, unsigned __int128, __int128)
WIDE_PRODUCTS(u16, s16, u32, s32)
WIDE_PRODUCTS(u32, s32, u64, s64)

/* Bits */
#define BITS(N, U, S)                                                                              \
  ONE(popc_##U, u32, U, (u32)__builtin_popcountll(a))                                              \
  ONE(clz_##U, u32, U, N - 1 - highest(a))                                                         \
  ONE(brev_##U, U, U, (U)reversed(a, N))                                                           \
  ONE(bfind_##U, u32, U, highest(a))                                                               \
  ONE(bfind_##S, u32, U, highest((S)a < 0 ? (U)~a : a))                                            \
  THREE(bfe_##U, U, U, u32, u32, (U)extracted(a, b, c, N, 0))                                      \
  THREE(bfe_##S, U, U, u32, u32, (U)extracted(a, b, c, N, 1))                                      \
  FOUR(bfi_##U, U, U, U, u32, u32, (U)inserted(a, b, c, e))

BITS(32, u32, s32)
BITS(64, u64, s64)
THREE(prmt_u32, u32, u32, u32, u32, permuted(a, b, c))
THREE(lop3_u32, u32, u32, u32, u32, looked_up(a, b, c, immediate))
THREE(shf_l_wrap, u32, u32, u32, u32, (u32)(((u64)b << 32 | a) << (c & 31) >> 32))
THREE(shf_r_wrap, u32, u32, u32, u32, (u32)(((u64)b << 32 | a) >> (c & 31)))
THREE(shf_l_clamp, u32, u32, u32, u32, (u32)(((u64)b << 32 | a) >> (32 - (c > 32 ? 32 : c))))
THREE(shf_r_clamp, u32, u32, u32, u32, (u32)(((u64)b << 32 | a) >> (c > 32 ? 32 : c)))

/* Floats. Divisions, roots and the like are rounded correctly, also where they may be inexact. */
#define FLOATS(ONE, TWO, THREE, KIND)                                                              \
  TWO(add_##KIND, f32, f32, f32, canonical(a + b))                                                 \
  TWO(sub_##KIND, f32, f32, f32, canonical(a - b))                                                 \
  TWO(mul_##KIND, f32, f32, f32, canonical(a *b))                                                  \
  THREE(fma_##KIND, f32, f32, f32, f32, canonical(fmaf(a, b, c)))                                  \
  ONE(flush_##KIND, f32, f32, flushed(a))

FLOATS(ONE, TWO, THREE, f32)
FLOATS(ONE64, TWO64, THREE64, f32x2)
TWO(div_f32, f32, f32, f32, canonical(a / b))
TWO(min_f32, f32, f32, f32, canonical(choose_f32(a, b, 1)))
TWO(max_f32, f32, f32, f32, canonical(choose_f32(a, b, 0)))
TWO(min_NaN_f32, f32, f32, f32, canonical(a != a ? a : b != b ? b : choose_f32(a, b, 1)))
TWO(max_NaN_f32, f32, f32, f32, canonical(a != a ? a : b != b ? b : choose_f32(a, b, 0)))
ONE(neg_f32, u32, u32, a ^ 0x80000000)
ONE(abs_f32, u32, u32, a & 0x7fffffff)
ONE(rcp_f32, f32, f32, canonical(1 / a))
ONE(sqrt_f32, f32, f32, canonical(sqrtf(a)))
ONE(rsqrt_f32, f32, f32, canonical((f32)(1 / sqrt((f64)a))))
ONE(ex2_f32, f32, f32, canonical((f32)exp2((f64)a)))
ONE(lg2_f32, f32, f32, canonical((f32)log2((f64)a)))
ONE(tanh_f32, f32, f32, canonical((f32)tanh((f64)a)))

TWO(add_f64, f64, f64, f64, a + b)
TWO(sub_f64, f64, f64, f64, a - b)
TWO(mul_f64, f64, f64, f64, a *b)
TWO(div_f64, f64, f64, f64, a / b)
THREE(fma_f64, f64, f64, f64, f64, fma(a, b, c))
TWO(min_f64, f64, f64, f64, choose_f64(a, b, 1))
TWO(max_f64, f64, f64, f64, choose_f64(a, b, 0))
ONE(neg_f64, u64, u64, a ^ 1ull << 63)
ONE(abs_f64, u64, u64, a & ~(1ull << 63))
ONE(rcp_f64, f64, f64, 1 / a)
ONE(sqrt_f64, f64, f64, sqrt(a))
ONE(rsqrt_f64, f64, f64, 1 / sqrt(a))
ONE(ex2_f64, f64, f64, exp2(a))
ONE(lg2_f64, f64, f64, log2(a))
ONE(tanh_f64, f64, f64, tanh(a))

/* Floats of 16 bits. A sum or product of float16 is rounded first to float32, which is harmless: it
   has more than twice the bits. bfloat16 has float32's exponents, and so goes through float64. */
#define F16(x) f32_from_f16(x)
#define BF16(x) (f64) f32_from_bf16(x)
#define HALVES(ONE, TWO, THREE, KIND, WIDE, NARROW, FROM_F32)                                      \
  TWO(add_##KIND, u16, u16, u16, NARROW(WIDE(a) + WIDE(b)))                                        \
  TWO(sub_##KIND, u16, u16, u16, NARROW(WIDE(a) - WIDE(b)))                                        \
  TWO(mul_##KIND, u16, u16, u16, NARROW(WIDE(a) * WIDE(b)))                                        \
  THREE(fma_##KIND, u16, u16, u16, u16, FROM_F32##64(fma_to_odd(WIDE(a), WIDE(b), WIDE(c))))       \
  TWO(min_##KIND, u16, u16, u16, FROM_F32##32(choose_f32((f32)WIDE(a), (f32)WIDE(b), 1)))          \
  TWO(max_##KIND, u16, u16, u16, FROM_F32##32(choose_f32((f32)WIDE(a), (f32)WIDE(b), 0)))          \
  TWO(min_NaN_##KIND, u16, u16, u16,                                                               \
      WIDE(a) != WIDE(a) || WIDE(b) != WIDE(b)                                                     \
          ? 0x7fff                                                                                 \
          : FROM_F32##32(choose_f32((f32)WIDE(a), (f32)WIDE(b), 1)))                               \
  TWO(max_NaN_##KIND, u16, u16, u16,                                                               \
      WIDE(a) != WIDE(a) || WIDE(b) != WIDE(b)                                                     \
          ? 0x7fff                                                                                 \
          : FROM_F32##32(choose_f32((f32)WIDE(a), (f32)WIDE(b), 0)))                               \
  ONE(relu_##KIND, u16, u16, WIDE(a) > 0 || WIDE(a) != WIDE(a) ? a : 0)                            \
  ONE(neg_##KIND, u16, u16, a ^ 0x8000)                                                            \
  ONE(abs_##KIND, u16, u16, a & 0x7fff)

HALVES(ONE, TWO, THREE, f16, F16, f16_from_f32, f16_from_f)
HALVES(ONE64, TWO64, THREE64, f16x2, F16, f16_from_f32, f16_from_f)
HALVES(ONE, TWO, THREE, bf16, BF16, bf16_from_f64, bf16_from_f)
HALVES(ONE64, TWO64, THREE64, bf16x2, BF16, bf16_from_f64, bf16_from_f)

/* Comparisons of floats; those that end in u also hold if an operand is a NaN. */
#define COMPARE(KIND, T, W)                                                                        \
  TEST(eq_##KIND, T, W(a) == W(b))                                                                 \
  TEST(ne_##KIND, T, W(a) < W(b) || W(a) > W(b))                                                   \
  TEST(lt_##KIND, T, W(a) < W(b))                                                                  \
  TEST(le_##KIND, T, W(a) <= W(b))                                                                 \
  TEST(gt_##KIND, T, W(a) > W(b))                                                                  \
  TEST(ge_##KIND, T, W(a) >= W(b))                                                                 \
  TEST(equ_##KIND, T, !(W(a) < W(b) || W(a) > W(b)))                                               \
  TEST(neu_##KIND, T, W(a) != W(b))                                                                \
  TEST(ltu_##KIND, T, !(W(a) >= W(b)))                                                             \
  TEST(leu_##KIND, T, !(W(a) > W(b)))                                                              \
  TEST(gtu_##KIND, T, !(W(a) <= W(b)))                                                             \
  TEST(geu_##KIND, T, !(W(a) < W(b)))                                                              \
  TEST(num_##KIND, T, W(a) == W(a) && W(b) == W(b))                                                \
  TEST(nan_##KIND, T, W(a) != W(a) || W(b) != W(b))
#define SAME(x) (x)

COMPARE(f32, f32, SAME)
COMPARE(f64, f64, SAME)
COMPARE(f16, u16, F16)
COMPARE(bf16, u16, f32_from_bf16)

/* Conversions between widths of integers */
#define WIDER(U, S, UW, SW)                                                                        \
  ONE(cvt_##UW##_##U, UW, U, a)                                                                    \
  ONE(cvt_##SW##_##S, SW, S, a)                                                                    \
  ONE(cvt_##U##_##UW, U, UW, (U)a)

WIDER(u8, s8, u16, s16)
WIDER(u8, s8, u32, s32)
WIDER(u8, s8, u64, s64)
WIDER(u16, s16, u32, s32)
WIDER(u16, s16, u64, s64)
WIDER(u32, s32, u64, s64)

/* Saturation of a 64-bit integer, signed or not, to a narrower range */
#define SATURATE(U, S, UMAX, SMIN, SMAX)                                                           \
  ONE(sat_##U##_s64, s64, s64, a < 0 ? 0 : (u64)a > UMAX ? (s64)UMAX : a)                          \
  ONE(sat_##S##_s64, s64, s64, a < SMIN ? SMIN : a > SMAX ? SMAX : a)                              \
  ONE(sat_##U##_u64, u64, u64, a > UMAX ? UMAX : a)                                                \
  ONE(sat_##S##_u64, u64, u64, a > (u64)SMAX ? (u64)SMAX : a)

SATURATE(u8, s8, UINT8_MAX, INT8_MIN, INT8_MAX)
SATURATE(u16, s16, UINT16_MAX, INT16_MIN, INT16_MAX)
SATURATE(u32, s32, UINT32_MAX, INT32_MIN, INT32_MAX)
SATURATE(u64, s64, UINT64_MAX, INT64_MIN, INT64_MAX)

/* Conversions of floats. Those to integers take float64 that is already rounded; `immediate` says
   that a NaN becomes the highest bit alone. */
#define INTEGER_CONVERSIONS(T)                                                                     \
  ONE(cvt_##T##_f64, T, f64, T##_from_f64(a, (int)immediate))                                      \
  ONE(cvt_f64_##T, f64, T, (f64)a)                                                                 \
  ONE(cvt_f32_##T, f32, T, (f32)a)                                                                 \
  ONE(cvt_f16_##T, u16, T, f16_from_f32((f32)a))

INTEGER_CONVERSIONS(u8)
INTEGER_CONVERSIONS(s8)
INTEGER_CONVERSIONS(u16)
INTEGER_CONVERSIONS(s16)
INTEGER_CONVERSIONS(u32)
INTEGER_CONVERSIONS(s32)
INTEGER_CONVERSIONS(u64)
INTEGER_CONVERSIONS(s64)
ONE(rni_f64, f64, f64, nearbyint(a))
ONE(rzi_f64, f64, f64, trunc(a))
ONE(rmi_f64, f64, f64, floor(a))
ONE(rpi_f64, f64, f64, ceil(a))
ONE(cvt_f64_f32, f64, f32, (f64)a)
ONE(cvt_f64_f16, f64, u16, (f64)f32_from_f16(a))
ONE(cvt_f64_bf16, f64, u16, (f64)f32_from_bf16(a))
ONE(cvt_f32_f64, f32, f64, canonical((f32)a))
ONE(cvt_f32_f16, f32, u16, canonical(f32_from_f16(a)))
ONE(cvt_f32_bf16, f32, u16, canonical(f32_from_bf16(a)))
ONE(cvt_f16_f64, u16, f64, f16_from_f64(a))
ONE(cvt_f16_f32, u16, f32, f16_from_f32(a))
ONE(cvt_bf16_f64, u16, f64, bf16_from_f64(a))
ONE(cvt_bf16_f32, u16, f32, bf16_from_f32(a))

/* Pairs: a is the upper element, b the lower. */
TWO(cvt_f16x2_f32, u32, f32, f32, (u32)f16_from_f32(a) << 16 | f16_from_f32(b))
TWO(cvt_bf16x2_f32, u32, f32, f32, (u32)bf16_from_f32(a) << 16 | bf16_from_f32(b))
TWO(cvt_e4m3x2_f32, u16, f32, f32, (u16)(e4m3_from_f32(a) << 8 | e4m3_from_f32(b)))
TWO(cvt_e2m1x2_f32, u8, f32, f32, (u8)(e2m1_from_f32(a) << 4 | e2m1_from_f32(b)))
ONE(cvt_f16x2_e4m3x2, u32, u16, (u32)f16_from_e4m3((u8)(a >> 8)) << 16 | f16_from_e4m3((u8)a))

/* Vectors of registers in one, and back: `immediate` is the element's number. */
TWO(pack_u16_u8, u16, u8, u8, (u16)(b << 8 | a))
TWO(pack_u32_u16, u32, u16, u16, (u32)b << 16 | a)
TWO(pack_u64_u32, u64, u32, u32, (u64)b << 32 | a)
FOUR(pack_u32_u8, u32, u8, u8, u8, u8, (u32)e << 24 | c << 16 | b << 8 | a)
FOUR(pack_u64_u16, u64, u16, u16, u16, u16, (u64)e << 48 | (u64)c << 32 | (u32)b << 16 | a)
ONE(unpack_u8_u16, u8, u16, (u8)(a >> 8 * immediate))
ONE(unpack_u8_u32, u8, u32, (u8)(a >> 8 * immediate))
ONE(unpack_u16_u32, u16, u32, (u16)(a >> 16 * immediate))
ONE(unpack_u16_u64, u16, u64, (u16)(a >> 16 * immediate))
ONE(unpack_u32_u64, u32, u64, (u32)(a >> 32 * immediate))
