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

/* A region is some cells of a shadow: rows of `cells` cells, which begin at index[r] * cells if
   there is an index, or else at start + r * stride. */
#define ROW(r) (index ? index[r] * cells : start + (r) * stride)
#define NOT_ALIKE INT64_MIN

/* Give the writer and the readers of cells that are all alike, packed as 32 and 32 bits. */
s64 engine_alike(const s32 *writers, const s32 *readers, const s64 *index, s64 start, s64 rows,
                 s64 cells, s64 stride) {
  s32 differ = 0, writer = writers[ROW(0)], reader = readers[ROW(0)];
  for (s64 r = 0; r < rows && !differ; r++) {
    const s32 *w = writers + ROW(r), *q = readers + ROW(r);
    for (s64 i = 0; i < cells; i++) differ |= (w[i] ^ writer) | (q[i] ^ reader);
  }
  return differ ? NOT_ALIKE : (s64)((u64)(s64)writer << 32 | (u32)reader);
}

void engine_fill(s32 *shadow, s32 value, const s64 *index, s64 start, s64 rows, s64 cells,
                 s64 stride) {
  for (s64 r = 0; r < rows; r++) {
    s32 *row = shadow + ROW(r);
    for (s64 i = 0; i < cells; i++) row[i] = value;
  }
}

/* Twice the values of E2M1 */
static const s16 e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#define MMA_K 64     /* elements of K in one MMA */
#define MMA_GROUP 16 /* elements of K under one scale */
#define MMA_GROUPS (MMA_K / MMA_GROUP)
#define MMA_BLOCK 16 /* columns that are computed together */

typedef s16 s16_block __attribute__((vector_size(2 * MMA_BLOCK), aligned(2)));
typedef f32 f32_block __attribute__((vector_size(4 * MMA_BLOCK), aligned(4)));
typedef f64 f64_block __attribute__((vector_size(8 * MMA_BLOCK), aligned(8)));

static s16 e2m1_at(const u8 *row, int k) { return e2m1[row[k / 2] >> 4 * (k & 1) & 15]; }

/* One block-scaled MMA of E2M1: rows of 32 bytes, [rows][4] factors of A and of B, and fp32 sums in
   rows of `stride` words.

   The products of a group are integers. Their sums fit in 16 bits, and float64 holds every sum of
   groups with UE4M3 factors exactly. The accumulator is added last, and one rounding follows. */
void engine_scaled_mma(const u8 *a, const f64 *factors_a, s64 rows, const u8 *b,
                       const f64 *factors_b, s64 columns, f64 sign, int accumulate, f32 *sums,
                       s64 stride) {
  s16 a_values[128][MMA_K];
  for (s64 i = 0; i < rows; i++)
    for (int k = 0; k < MMA_K; k++) a_values[i][k] = e2m1_at(a + 32 * i, k);
  for (s64 first = 0; first < columns; first += MMA_BLOCK) {
    s64 here = columns - first < MMA_BLOCK ? columns - first : MMA_BLOCK;
    s16_block b_values[MMA_K] = {0};
    f64_block b_factors[MMA_GROUPS] = {0};
    for (s64 j = 0; j < here; j++) {
      for (int k = 0; k < MMA_K; k++) b_values[k][j] = e2m1_at(b + 32 * (first + j), k);
      for (int g = 0; g < MMA_GROUPS; g++)
        b_factors[g][j] = factors_b[MMA_GROUPS * (first + j) + g] * (sign / 4);
    }
    for (s64 i = 0; i < rows; i++) {
      f64_block total = {0};
      for (int g = 0; g < MMA_GROUPS; g++) {
        s16_block group = {0};
        for (int k = g * MMA_GROUP; k < (g + 1) * MMA_GROUP; k++)
          group += b_values[k] * a_values[i][k];
        f64_block factor = b_factors[g] * factors_a[MMA_GROUPS * i + g];
        total += __builtin_convertvector(group, f64_block) * factor;
      }
      f32 *to = sums + i * stride + first;
      f32_block old = {0};
      if (accumulate) memcpy(&old, to, 4 * (size_t)here);
      if (accumulate) total += __builtin_convertvector(old, f64_block);
      f32_block result = __builtin_convertvector(total, f32_block);
      memcpy(to, &result, 4 * (size_t)here);
    }
  }
}
#define HALF_MMA_ROWS 16
#define HALF_MMA_COLUMNS 8
#define HALF_MMA_K 16

typedef f64 f64_row __attribute__((vector_size(8 * HALF_MMA_COLUMNS)));

/* One mma.sync m16n8k16 of float16 or bfloat16 with float32 sums, on the registers of A (4), B (2),
   C (4) and D (4), as tensor_cores/fragments.py lays them out. It sums as warp_mma.py does. */
static void half_mma(u32 *const *words, int bfloat16) {
  f64 a[HALF_MMA_ROWS][HALF_MMA_K];
  f64_row b[HALF_MMA_K], sums[HALF_MMA_ROWS];
  for (int n = 0; n < 6; n++)
    for (int i = 0; i < 2 * 32; i++) {
      u16 code = ((const u16 *)words[n])[i];
      f64 value = bfloat16 ? f32_from_bf16(code) : f32_from_f16(code);
      int outer = i / 8, k = i % 8;
      if (n < 4) a[outer + 8 * (n & 1)][k + 8 * (n >> 1)] = value;
      else b[k + 8 * (n - 4)][outer] = value;
    }
  for (int row = 0; row < HALF_MMA_ROWS; row++) {
    sums[row] = (f64_row){0};
    for (int k = 0; k < HALF_MMA_K; k++) sums[row] += b[k] * a[row][k];
  }
  for (int n = 0; n < 4; n++)
    for (int i = 0; i < 32; i++) {
      f64 sum = sums[i / 4 + 8 * (n >> 1)][2 * (i % 4) + (n & 1)];
      ((f32 *)words[10 + n])[i] = (f32)(sum + ((const f32 *)words[6 + n])[i]);
    }
}

#endif
