/* Work on many bytes at once: the distinct cells of a shadow, and products of matrices. */
#ifndef TENSORS_H
#define TENSORS_H

#include "numbers.h"

#define MOST_DISTINCT 64

/* List the distinct values of some cells, ascending. Returns their number, or -1 if there are more
   than MOST_DISTINCT. */
s32 engine_distinct(const s32 *cells, s64 count, s32 *found) {
  s32 number = 0;
  for (s64 i = 0; i < count;) {
    s32 value = cells[i];
    s32 at = 0;
    while (at < number && found[at] < value) at++;
    if (at == number || found[at] != value) {
      if (number == MOST_DISTINCT) return -1;
      for (s32 n = number++; n > at; n--) found[n] = found[n - 1];
      found[at] = value;
    }
    for (i++; i < count && cells[i] == value;) i++; /* most cells are like the one before */
  }
  return number;
}

/* Twice the values of E2M1 */
static const s16 e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#define MMA_K 64     /* elements of K in one MMA */
#define MMA_GROUP 16 /* elements of K under one scale */
#define MMA_GROUPS (MMA_K / MMA_GROUP)
#define MMA_COLUMNS 256

/* One block-scaled MMA of E2M1: rows of 32 bytes, [rows][4] factors of A and of B, and fp32 sums in
   rows of `stride` words.

   The products of a group are integers. Their sums fit in 16 bits, and float64 holds every sum of
   groups with UE4M3 factors exactly. The accumulator is added last, and one rounding follows. */
void engine_scaled_mma(const u8 *a, const f64 *factors_a, s64 rows, const u8 *b,
                       const f64 *factors_b, s64 columns, f64 sign, int accumulate, f32 *sums,
                       s64 stride) {
  static _Thread_local s16 b_values[MMA_K][MMA_COLUMNS];
  static _Thread_local f64 b_factors[MMA_GROUPS][MMA_COLUMNS];
  for (s64 j = 0; j < columns; j++) {
    for (int k = 0; k < MMA_K; k++) b_values[k][j] = e2m1[b[32 * j + k / 2] >> 4 * (k & 1) & 15];
    for (int g = 0; g < MMA_GROUPS; g++) b_factors[g][j] = factors_b[MMA_GROUPS * j + g];
  }
  for (s64 i = 0; i < rows; i++) {
    f64 total[MMA_COLUMNS] = {0};
    for (int g = 0; g < MMA_GROUPS; g++) {
      s16 group[MMA_COLUMNS] = {0};
      for (int k = g * MMA_GROUP; k < (g + 1) * MMA_GROUP; k++) {
        s16 value = e2m1[a[32 * i + k / 2] >> 4 * (k & 1) & 15];
        IVDEP for (int j = 0; j < MMA_COLUMNS; j++) group[j] += (s16)(value * b_values[k][j]);
      }
      f64 factor = factors_a[MMA_GROUPS * i + g] * (sign / 4);
      IVDEP for (int j = 0; j < MMA_COLUMNS; j++)
        total[j] += (f64)group[j] * (factor * b_factors[g][j]);
    }
    f32 *row = sums + i * stride;
    IVDEP for (int j = 0; j < columns; j++)
      row[j] = (f32)(accumulate ? total[j] + (f64)row[j] : total[j]);
  }
}

#endif
