/* Numbers of the PTX ISA in C: the types of lanes, and the small floating-point formats. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;

/* Lanes and the like do not depend on one another, also where a result replaces a source. */
#define IVDEP _Pragma("GCC ivdep")

#define LANES 32
#define ALL 0xffffffffu

static inline f32 f32_of(u32 bits) {
  f32 value;
  memcpy(&value, &bits, 4);
  return value;
}

static inline u32 bits_of(f32 value) {
  u32 bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static inline f64 f64_of(u64 bits) {
  f64 value;
  memcpy(&value, &bits, 8);
  return value;
}

static inline u64 bits64_of(f64 value) {
  u64 bits;
  memcpy(&bits, &value, 8);
  return bits;
}

/* A NaN result of float32 is 0x7fffffff, whatever the operands' NaNs are. */
static inline f32 canonical(f32 value) { return value == value ? value : f32_of(0x7fffffff); }

/* .ftz: a denormal becomes a zero of its sign. */
static inline f32 flushed(f32 value) {
  u32 bits = bits_of(value);
  return (bits & 0x7f800000) ? value : f32_of(bits & 0x80000000);
}

/* The magnitude of a float32 (its bits without the sign) rounded to a format with so many mantissa
   bits and this exponent bias, ties to even. Formats with infinity pass its code as the largest. A
   denormal is rounded by an addition whose unit in the last place is the format's smallest step. */
static inline u32 narrowed(u32 magnitude, int mantissa, int bias, u32 largest) {
  int drop = 23 - mantissa;
  u32 magic = (u32)(127 + 24 - bias - mantissa) << 23;
  u32 small = bits_of(f32_of(magnitude) + f32_of(magic)) - magic;
  u32 odd = magnitude >> drop & 1;
  u32 normal = (magnitude + (1u << (drop - 1)) - 1 + odd - ((u32)(127 - bias) << 23)) >> drop;
  u32 code = magnitude < (u32)(128 - bias) << 23 ? small : normal;
  return code > largest ? largest : code;
}

static inline u32 is_nan(u32 bits) { return (bits & 0x7fffffff) > 0x7f800000; }

static inline u16 f16_from_f32(f32 value) {
  u32 bits = bits_of(value);
  u32 code = narrowed(bits & 0x7fffffff, 10, 15, 0x7c00) | (bits >> 16 & 0x8000);
  return is_nan(bits) ? 0x7fff : (u16)code;
}

static inline u16 bf16_from_f32(f32 value) {
  u32 bits = bits_of(value);
  u32 code = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return is_nan(bits) ? 0x7fff : (u16)code;
}

static inline u8 e4m3_from_f32(f32 value) {
  u32 bits = bits_of(value);
  u32 code = narrowed(bits & 0x7fffffff, 3, 7, 0x7e) | (bits >> 24 & 0x80);
  return is_nan(bits) ? 0x7f : (u8)code;
}

static inline u8 e2m1_from_f32(f32 value) {
  u32 bits = bits_of(value);
  u32 code = narrowed(bits & 0x7fffffff, 1, 1, 7) | (bits >> 28 & 8);
  return is_nan(bits) ? 7 : (u8)code;
}

static inline f32 f32_from_bf16(u16 code) { return f32_of((u32)code << 16); }

/* The magnitude is shifted into place and multiplied by the difference of the exponent biases,
   which is exact for denormals too. */
static inline f32 f32_from_f16(u16 code) {
  u32 magnitude = (u32)(code & 0x7fff) << 13;
  u32 finite = bits_of(f32_of(magnitude) * f32_of((u32)(127 + 112) << 23));
  u32 bits = (code & 0x7fff) >= 0x7c00 ? magnitude | 0x7f800000 : finite;
  return f32_of(bits | (u32)(code & 0x8000) << 16);
}

static inline u16 f16_from_e4m3(u8 code) {
  u32 magnitude = (u32)(code & 0x7f) << 20;
  f32 value = f32_of(magnitude) * f32_of((u32)(127 + 120) << 23);
  u16 bits = f16_from_f32(value) | (u16)((code & 0x80) << 8);
  return (code & 0x7f) == 0x7f ? 0x7fff : bits;
}

/* A float64 rounded once to a 16-bit format: `mantissa` bits, and the exponent of the smallest
   normal number. */
static inline u16 rounded16(f64 value, int mantissa, int lowest) {
  u64 bits = bits64_of(value), magnitude = bits & ~(1ull << 63);
  u16 sign = (u16)(bits >> 48 & 0x8000);
  int drop = 52 - mantissa;
  u64 infinity = (u64)(2 - 2 * lowest + 1) << mantissa; /* all ones in the exponent */
  u64 magic = (u64)(1023 + lowest - mantissa + 52) << 52;
  u64 small = bits64_of(f64_of(magnitude) + f64_of(magic)) - magic;
  u64 normal = (magnitude + (1ull << (drop - 1)) - 1 + (magnitude >> drop & 1) -
                ((u64)(1023 + lowest - 1) << 52)) >> drop;
  u64 code = magnitude < (u64)(1023 + lowest) << 52 ? small : normal;
  code = code > infinity ? infinity : code;
  return magnitude > 0x7ffull << 52 ? 0x7fff : (u16)(sign | code);
}

static inline u16 f16_from_f64(f64 value) { return rounded16(value, 10, -14); }
static inline u16 bf16_from_f64(f64 value) { return rounded16(value, 7, -126); }

/* a * b + c in float64, rounded to odd: it then rounds to a 16-bit format as if it were exact. The
   product must be exact in float64. The error of the sum is Knuth's two-sum. */
static inline f64 fma_to_odd(f64 a, f64 b, f64 c) {
  f64 product = a * b, total = product + c, part = total - product;
  f64 error = (product - (total - part)) + (c - part);
  u64 bits = bits64_of(total);
  int inexact = error != 0 && (bits & 0x7ffull << 52) != 0x7ffull << 52 && !(bits & 1);
  u64 towards = (error > 0) == (total > 0) ? bits + 1 : bits - 1;
  return inexact ? f64_of(towards) : total;
}

/* min and max prefer a number to a NaN and have -0 below +0; `low` is 1 for min. */
#define CHOOSE(T, SIGNED_BIT)                                                                      \
  static inline T choose_##T(T a, T b, int low) {                                                  \
    int first = a == b ? SIGNED_BIT(a) == low : (a < b) == low;                                    \
    T number = first ? a : b;                                                                      \
    return a != a ? b : b != b ? a : number;                                                       \
  }
#define SIGN32(a) (int)(bits_of(a) >> 31)
#define SIGN64(a) (int)(bits64_of(a) >> 63)
CHOOSE(f32, SIGN32)
CHOOSE(f64, SIGN64)

/* Rounding to an integer saturates. A NaN becomes `nothing`. */
#define SATURATED(T, LOW, HIGH)                                                                    \
  static inline T T##_from_f64(f64 value, int wide) {                                              \
    if (value != value) return (T)(wide ? 1ull << (sizeof(T) * 8 - 1) : 0);                        \
    return value >= (f64)(HIGH) ? (T)(HIGH) : value <= (f64)(LOW) ? (T)(LOW) : (T)value;           \
  }
SATURATED(s8, INT8_MIN, INT8_MAX)
SATURATED(s16, INT16_MIN, INT16_MAX)
SATURATED(s32, INT32_MIN, INT32_MAX)
SATURATED(s64, INT64_MIN, INT64_MAX)
SATURATED(u8, 0, UINT8_MAX)
SATURATED(u16, 0, UINT16_MAX)
SATURATED(u32, 0, UINT32_MAX)
SATURATED(u64, 0, UINT64_MAX)

/* Division truncates. By zero it gives what hardware does, which the ISA leaves open. */
#define DIVIDE(U, S)                                                                               \
  static inline U div_##U(U a, U b) { return b ? a / b : (U)-1; }                                  \
  static inline U rem_##U(U a, U b) { return b ? a % b : a; }                                      \
  static inline U div_##S(U a, U b) {                                                              \
    return !b ? (U)-1 : b == (U)-1 ? (U)(0 - a) : (U)((S)a / (S)b);                                \
  }                                                                                                \
  static inline U rem_##S(U a, U b) { return !b ? a : b == (U)-1 ? 0 : (U)((S)a % (S)b); }
DIVIDE(u16, s16)
DIVIDE(u32, s32)
DIVIDE(u64, s64)

static inline u64 reversed(u64 x, int bits) {
  u64 result = 0;
  for (int i = 0; i < bits; i++) result |= (x >> i & 1) << (bits - 1 - i);
  return result;
}

static inline u32 highest(u64 x) { return x ? 63 - (u32)__builtin_clzll(x) : ALL; }

/* Bit fields: positions and lengths count modulo 256. */
static inline u64 extracted(u64 a, u32 position, u32 length, u32 bits, int is_signed) {
  position &= 255, length &= 255;
  s64 wide = is_signed ? (s64)(a << (64 - bits)) >> (64 - bits) : 0;
  u64 field = is_signed ? (u64)(wide >> (position > 63 ? 63 : position))
                        : position > 63 ? 0 : a >> position;
  if (!length) return 0;
  if (length >= bits || position + length >= bits) return field;
  return is_signed ? (u64)((s64)(field << (64 - length)) >> (64 - length))
                   : field & ((1ull << length) - 1);
}

static inline u64 inserted(u64 a, u64 b, u32 position, u32 length) {
  position &= 255, length &= 255;
  if (position > 63) return b;
  u64 mask = (length > 63 ? ~0ull : (1ull << length) - 1) << position;
  return (b & ~mask) | (a << position & mask);
}

/* prmt: nibbles select bytes of b:a, and bit 3 of a nibble replicates the sign. */
static inline u32 permuted(u32 a, u32 b, u32 selector) {
  u64 both = (u64)b << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; i++) {
    u32 nibble = selector >> 4 * i & 15, byte = (u32)(both >> 8 * (nibble & 7)) & 255;
    u32 sign = byte & 128 ? 255 : 0;
    result |= (nibble & 8 ? sign : byte) << 8 * i;
  }
  return result;
}

static inline u32 looked_up(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  for (int i = 0; i < 8; i++) {
    u32 term = (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    result |= table >> i & 1 ? term : 0;
  }
  return result;
}

#endif
