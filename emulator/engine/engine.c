/* The interpreter of a warp's instructions that touch its own registers only.

   A program is an array of records, one or more for each instruction, in the order of their PTX. The
   engine runs them until it meets one that Python has to run: an instruction of another kind, a
   branch that splits the warp, or a register without a value. It changes nothing of such an
   instruction, so that Python can run it whole or say what is wrong. */
#include "memory.h"
#include "numbers.h"
#include "tensors.h"

/* What a record does (records.py) */
enum {
  PYTHON, VALUE, TEST, LOGIC, SELECT, BRANCH, SHUFFLE, MULTIPLY, LOAD, STORE, LOAD_MATRIX,
  STORE_MATRIX
};
/* What a slot holds (registers.py) */
enum { NEVER, WRITTEN, LOADING };

typedef struct {
  s32 kind, operation, pc, immediate;
  s32 to, to_slot, bytes; /* the result: its place in the file, its slot, the bytes of a lane */
  s32 from[4], from_slot[4];
  s32 guard, guard_slot, guard_flip; /* the predicate's place, or -1 */
  s32 other, other_slot;             /* a second result, or -1 */
  s32 flips[2];
} Record;

typedef struct {
  const Record *records;
  const s32 *starts; /* the first record of each instruction */
  u8 *file;          /* all registers */
  u8 *states;        /* what each slot holds */
  const s32 *elements; /* the registers of accesses to memory: place, slot and bytes of each */
  Memory memory;
} Warp;

#define EACH IVDEP for (int i = 0; i < LANES; i++)
#define HALVES_EACH IVDEP for (int i = 0; i < 2 * LANES; i++)
#define SOURCE(n, T) const T *source_##n = (const T *)from[n];

typedef void value_function(void *to, const void *const *from, u32 immediate);
typedef u32 test_function(const void *const *from, u32 immediate);

#define VALUE_OF(name, R, LOOP, READ, ...)                                                         \
  static void lane_##name(void *to, const void *const *from, u32 immediate) {                             \
    R *result = (R *)to;                                                                           \
    (void)immediate;                                                                               \
    READ LOOP { __VA_ARGS__ }                                                                      \
  }
#define READ1(A) SOURCE(0, A)
#define READ2(A, B) SOURCE(0, A) SOURCE(1, B)
#define READ3(A, B, C) SOURCE(0, A) SOURCE(1, B) SOURCE(2, C)
#define READ4(A, B, C, D) SOURCE(0, A) SOURCE(1, B) SOURCE(2, C) SOURCE(3, D)
#define DO1(R, A, ...)                                                                             \
  A a = source_0[i];                                                                               \
  result[i] = (R)(__VA_ARGS__);
#define DO2(R, A, B, ...)                                                                          \
  B b = source_1[i];                                                                               \
  DO1(R, A, __VA_ARGS__)
#define DO3(R, A, B, C, ...)                                                                       \
  C c = source_2[i];                                                                               \
  DO2(R, A, B, __VA_ARGS__)
#define DO4(R, A, B, C, D, ...)                                                                    \
  D e = source_3[i];                                                                               \
  DO3(R, A, B, C, __VA_ARGS__)

#define ONE(name, R, A, ...) VALUE_OF(name, R, EACH, READ1(A), DO1(R, A, __VA_ARGS__))
#define TWO(name, R, A, B, ...) VALUE_OF(name, R, EACH, READ2(A, B), DO2(R, A, B, __VA_ARGS__))
#define THREE(name, R, A, B, C, ...)                                                               \
  VALUE_OF(name, R, EACH, READ3(A, B, C), DO3(R, A, B, C, __VA_ARGS__))
#define FOUR(name, R, A, B, C, D, ...)                                                             \
  VALUE_OF(name, R, EACH, READ4(A, B, C, D), DO4(R, A, B, C, D, __VA_ARGS__))
#define ONE64(name, R, A, ...) VALUE_OF(name, R, HALVES_EACH, READ1(A), DO1(R, A, __VA_ARGS__))
#define TWO64(name, R, A, B, ...)                                                                  \
  VALUE_OF(name, R, HALVES_EACH, READ2(A, B), DO2(R, A, B, __VA_ARGS__))
#define THREE64(name, R, A, B, C, ...)                                                             \
  VALUE_OF(name, R, HALVES_EACH, READ3(A, B, C), DO3(R, A, B, C, __VA_ARGS__))
#define TEST(name, A, ...)                                                                         \
  static u32 lane_##name(const void *const *from, u32 immediate) {                                        \
    u32 lanes = 0;                                                                                 \
    (void)immediate;                                                                               \
    READ2(A, A) EACH {                                                                             \
      A a = source_0[i], b = source_1[i];                                                          \
      lanes |= (u32)(__VA_ARGS__) << i;                                                            \
    }                                                                                              \
    return lanes;                                                                                  \
  }
#include "operations.h"
#undef ONE
#undef TWO
#undef THREE
#undef FOUR
#undef ONE64
#undef TWO64
#undef THREE64
#undef TEST

#define NAMED(name, ...) {#name, (void *)lane_##name},
#define ONE NAMED
#define TWO NAMED
#define THREE NAMED
#define FOUR NAMED
#define ONE64 NAMED
#define TWO64 NAMED
#define THREE64 NAMED
#define TEST NAMED
static const struct {
  const char *name;
  void *function;
} operations[] = {
#include "operations.h"
};
#undef TEST

const char *engine_operation(s32 number) {
  return number < (s32)(sizeof operations / sizeof *operations) ? operations[number].name : 0;
}

/* An operation on 32 lanes that need not be a warp's. */
void engine_apply(s32 number, void *to, const void *const *from) {
  ((value_function *)operations[number].function)(to, from, 0);
}

/* Read registers of 32 bits into rows of 32 words. `group` has their places, then their slots.
   Returns the number of the first one without a value, or -1. */
s32 engine_get_rows(const u8 *file, const u8 *states, const s32 *group, s32 count, u32 *rows) {
  for (s32 i = 0; i < count; i++) {
    if (states[group[count + i]] != WRITTEN) return i;
    memcpy(rows + LANES * i, file + group[i], 4 * LANES);
  }
  return -1;
}

/* Write registers of 32 bits from rows of 32 words. */
void engine_set_rows(u8 *file, u8 *states, const s32 *group, s32 count, const u32 *rows) {
  for (s32 i = 0; i < count; i++) {
    memcpy(file + group[i], rows + LANES * i, 4 * LANES);
    states[group[count + i]] = WRITTEN;
  }
}

/* Write a result of `bytes` a lane in some lanes only. */
static void blend(u8 *to, const u8 *value, u32 lanes, s32 bytes) {
  switch (bytes) {
    case 1: EACH if (lanes >> i & 1) to[i] = value[i]; break;
    case 2: EACH if (lanes >> i & 1) ((u16 *)to)[i] = ((u16 *)value)[i]; break;
    case 4: EACH if (lanes >> i & 1) ((u32 *)to)[i] = ((u32 *)value)[i]; break;
    default: EACH if (lanes >> i & 1) ((u64 *)to)[i] = ((u64 *)value)[i];
  }
}

/* The bits of an undefined value are those of a NaN in every format (lanes.py). */
static void make_undefined(u8 *to, s32 bytes) { memset(to, 255, (size_t)(LANES * bytes)); }

static int written(const Warp *warp, const Record *r) {
  const u8 *states = warp->states;
  return (states[r->from_slot[0]] & states[r->from_slot[1]] & states[r->from_slot[2]] &
          states[r->from_slot[3]]) == WRITTEN;
}

static u32 predicate(const Warp *warp, s32 at) { return *(u32 *)(warp->file + at); }

static void set_predicate(const Warp *warp, s32 at, s32 slot, u32 value, u32 lanes) {
  u32 *to = (u32 *)(warp->file + at);
  u32 old = warp->states[slot] == NEVER ? 0 : *to;
  *to = (old & ~lanes) | (value & lanes);
  warp->states[slot] = WRITTEN;
}

/* Give a place for a result that is then written in some lanes only; 0 if the register may not be
   written so, because tcgen05.ld still fills its other lanes. */
static int put(const Warp *warp, const Record *r, const u8 *value, u32 lanes) {
  u8 state = warp->states[r->to_slot];
  if (state == LOADING) return 0;
  if (state == NEVER) make_undefined(warp->file + r->to, r->bytes);
  blend(warp->file + r->to, value, lanes, r->bytes);
  warp->states[r->to_slot] = WRITTEN;
  return 1;
}

/* A result of from_slot[0..3], in some lanes. */
static int value(const Warp *warp, const Record *r, u32 lanes) {
  if (!written(warp, r)) return 0;
  const void *from[4];
  for (int n = 0; n < 4; n++) from[n] = warp->file + r->from[n];
  value_function *function = (value_function *)operations[r->operation].function;
  if (lanes == ALL) {
    function(warp->file + r->to, from, (u32)r->immediate);
    warp->states[r->to_slot] = WRITTEN;
    return 1;
  }
  u64 scratch[LANES];
  function(scratch, from, (u32)r->immediate);
  return put(warp, r, (const u8 *)scratch, lanes);
}

/* How two predicates combine; `value` stands first. */
static u32 combined(s32 how, u32 value, u32 with) {
  return how == 1 ? value & with : how == 2 ? value | with : how == 3 ? value ^ with : value;
}

/* setp: a comparison of two values, combined with a predicate (the third source), and its inverse
   combined with the same one. */
static int test(const Warp *warp, const Record *r, u32 lanes) {
  if (!written(warp, r)) return 0;
  const void *from[2] = {warp->file + r->from[0], warp->file + r->from[1]};
  u32 true_ = ((test_function *)operations[r->operation].function)(from, 0);
  u32 with = predicate(warp, r->from[2]) ^ (u32)r->flips[0];
  set_predicate(warp, r->to, r->to_slot, combined(r->immediate, true_, with), lanes);
  if (r->other >= 0)
    set_predicate(warp, r->other, r->other_slot, combined(r->immediate, ~true_, with), lanes);
  return 1;
}

/* and, or, xor, not and mov of predicates */
static int logic(const Warp *warp, const Record *r, u32 lanes) {
  if (!written(warp, r)) return 0;
  u32 a = predicate(warp, r->from[0]) ^ (u32)r->flips[0];
  u32 b = predicate(warp, r->from[1]) ^ (u32)r->flips[1];
  set_predicate(warp, r->to, r->to_slot, combined(r->immediate, a, b), lanes);
  return 1;
}

/* selp: sources 0 and 1 by a predicate. A source that no running lane takes needs no value. */
static int select_(const Warp *warp, const Record *r, u32 mask, u32 lanes) {
  const u8 *states = warp->states;
  if (states[r->from_slot[2]] != WRITTEN) return 0;
  u32 yes = predicate(warp, r->from[2]) ^ (u32)r->flips[0];
  if (yes & mask && states[r->from_slot[0]] != WRITTEN) return 0;
  if (~yes & mask && states[r->from_slot[1]] != WRITTEN) return 0;
  u64 scratch[LANES];
  memcpy(scratch, warp->file + r->from[1], (size_t)(r->bytes * LANES));
  blend((u8 *)scratch, warp->file + r->from[0], yes, r->bytes);
  if (lanes != ALL) return put(warp, r, (const u8 *)scratch, lanes);
  memcpy(warp->file + r->to, scratch, (size_t)(r->bytes * LANES));
  warp->states[r->to_slot] = WRITTEN;
  return 1;
}

/* shfl of a whole warp: sources are the value, the lane or distance, the control and the members. */
static int shuffle(const Warp *warp, const Record *r, u32 lanes) {
  if (lanes != ALL || !written(warp, r)) return 0;
  const u32 *value = (u32 *)(warp->file + r->from[0]), *by = (u32 *)(warp->file + r->from[1]);
  const u32 *control = (u32 *)(warp->file + r->from[2]);
  if (*(u32 *)(warp->file + r->from[3]) != ALL) return 0;
  u32 result[LANES], inside = 0;
  for (s32 i = 0; i < LANES; i++) {
    s32 distance = by[i] & 31, clamp = control[i] & 31, segment = control[i] >> 8 & 31;
    s32 last = (i & segment) | (clamp & ~segment), first = i & segment, lane;
    int in;
    switch (r->immediate) {
      case 0: lane = first | (distance & ~segment), in = lane <= last; break;
      case 1: lane = i - distance, in = lane >= last; break;
      case 2: lane = i + distance, in = lane <= last; break;
      default: lane = i ^ distance, in = lane <= last;
    }
    result[i] = value[in ? lane : i];
    inside |= (u32)in << i;
  }
  memcpy(warp->file + r->to, result, sizeof result);
  warp->states[r->to_slot] = WRITTEN;
  if (r->other >= 0) set_predicate(warp, r->other, r->other_slot, inside, ALL);
  return 1;
}

/* mma.sync of a whole warp; `immediate` says whether its operands are bfloat16. */
static int multiply(const Warp *warp, const Record *r, u32 lanes) {
  const s32 *elements = warp->elements + r->operation; /* place, slot and bytes of each register */
  u32 *words[14];
  if (lanes != ALL) return 0;
  for (int n = 0; n < 14; n++) {
    if (n < 10 && warp->states[elements[3 * n + 1]] != WRITTEN) return 0;
    words[n] = (u32 *)(warp->file + elements[3 * n]);
  }
  half_mma(words, r->immediate);
  for (int n = 10; n < 14; n++) warp->states[elements[3 * n + 1]] = WRITTEN;
  return 1;
}

/* What an access to memory needs of its record */
typedef struct {
  const s32 *registers; /* place, slot and bytes of each */
  int bytes, count, base_bytes, is_signed, space, strong;
} Access;

static Access access_of(const Warp *warp, const Record *r) {
  s32 a = r->flips[0], b = r->flips[1];
  Access access = {warp->elements + r->operation, a & 255,  a >> 8 & 255, a >> 16 & 255,
                   a >> 24 & 1,                   b & 255, b >> 8 & 1};
  return access;
}

static void addresses_of(const Warp *warp, const Record *r, const Access *a, u64 *addresses) {
  const u8 *base = warp->file + r->from[0];
  for (int i = 0; i < LANES; i++)
    addresses[i] = (a->base_bytes == 4 ? ((u32 *)base)[i] : ((u64 *)base)[i]) + (u64)(s64)r->immediate;
}

/* Extend an element of memory to its register. */
static void take(u8 *to, s32 to_bytes, const u8 *from, int bytes, int is_signed) {
  u64 value = 0;
  switch (bytes) {
    case 1: value = is_signed ? (u64)(s64) * (s8 *)from : *from; break;
    case 2: value = is_signed ? (u64)(s64) * (s16 *)from : *(u16 *)from; break;
    case 4: value = is_signed ? (u64)(s64) * (s32 *)from : *(u32 *)from; break;
    default: value = *(u64 *)from;
  }
  switch (to_bytes) {
    case 1: *to = (u8)value; break;
    case 2: *(u16 *)to = (u16)value; break;
    case 4: *(u32 *)to = (u32)value; break;
    default: *(u64 *)to = value;
  }
}

/* ld: elements go to the registers in the running lanes. */
static int load(Warp *warp, const Record *r, u32 lanes, int all) {
  Access a = access_of(warp, r);
  Places places;
  u64 addresses[LANES];
  if (!written(warp, r)) return TO_PYTHON;
  for (int n = 0; n < a.count; n++)
    if (!all && warp->states[a.registers[3 * n + 1]] == LOADING) return TO_PYTHON;
  addresses_of(warp, r, &a, addresses);
  s64 width = a.bytes * a.count;
  int answer = find(&warp->memory, &places, a.space, addresses, lanes, width, 0, a.strong);
  if (answer != DONE) return answer;
  record(&warp->memory, &places, lanes, width, 0);
  for (int n = 0; n < a.count; n++) {
    const s32 *to = a.registers + 3 * n;
    u8 *row = warp->file + to[0], *state = warp->states + to[1];
    if (*state == NEVER) make_undefined(row, to[2]);
    if (a.bytes == 4 && to[2] == 4) {
      for (int i = 0; i < LANES; i++)
        if (lanes >> i & 1) ((u32 *)row)[i] = *(u32 *)(places.bytes[i] + 4 * n);
    } else {
      for (int i = 0; i < LANES; i++)
        if (lanes >> i & 1)
          take(row + i * to[2], to[2], places.bytes[i] + n * a.bytes, a.bytes, a.is_signed);
    }
    *state = WRITTEN;
  }
  return DONE;
}

/* Compilers use what a load leaves in lanes that skip it, if no result depends on it. */
static void skip_load(const Warp *warp, const Record *r) {
  Access a = access_of(warp, r);
  for (int n = 0; n < a.count; n++) {
    const s32 *to = a.registers + 3 * n;
    if (warp->states[to[1]] != NEVER) continue;
    make_undefined(warp->file + to[0], to[2]);
    warp->states[to[1]] = WRITTEN;
  }
}

/* st: the low bytes of the registers go to memory, in the order of the lanes. */
static int store(Warp *warp, const Record *r, u32 lanes) {
  Access a = access_of(warp, r);
  Places places;
  u64 addresses[LANES];
  if (!written(warp, r)) return TO_PYTHON;
  for (int n = 0; n < a.count; n++)
    if (warp->states[a.registers[3 * n + 1]] != WRITTEN) return TO_PYTHON;
  addresses_of(warp, r, &a, addresses);
  s64 width = a.bytes * a.count;
  int answer = find(&warp->memory, &places, a.space, addresses, lanes, width, 1, 0);
  if (answer != DONE) return answer;
  record(&warp->memory, &places, lanes, width, 1);
  for (int i = 0; i < LANES; i++) {
    if (!(lanes >> i & 1)) continue;
    for (int n = 0; n < a.count; n++) {
      const s32 *from = a.registers + 3 * n;
      take(places.bytes[i] + n * a.bytes, a.bytes, warp->file + from[0] + i * from[2], from[2], 0);
    }
  }
  return DONE;
}

/* ldmatrix and stmatrix of a whole warp: row r of matrix n is 16 bytes at the address of lane
   8 n + r. Lane l holds elements 2 (l % 4) and the next one of row l / 4, or of column l / 4 if the
   matrices are transposed. */
static int matrix(Warp *warp, const Record *r, u32 lanes, int stores) {
  Access a = access_of(warp, r);
  Places places;
  u64 addresses[LANES];
  if (lanes != ALL || !written(warp, r)) return TO_PYTHON;
  for (int n = 0; n < a.count && stores; n++)
    if (warp->states[a.registers[3 * n + 1]] != WRITTEN) return TO_PYTHON;
  addresses_of(warp, r, &a, addresses);
  u32 rows = a.count == 4 ? ALL : (1u << 8 * a.count) - 1;
  int answer = find(&warp->memory, &places, SHARED, addresses, rows, 16, stores, 0);
  if (answer != DONE) return answer;
  record(&warp->memory, &places, rows, 16, stores);
  int transposed = a.is_signed;
  for (int n = 0; n < a.count; n++) {
    const s32 *held = a.registers + 3 * n;
    for (int i = 0; i < LANES; i++)
      for (int half = 0; half < 2; half++) {
        int row = transposed ? 2 * (i % 4) + half : i / 4;
        int column = transposed ? i / 4 : 2 * (i % 4) + half;
        u16 *in_memory = (u16 *)places.bytes[8 * n + row] + column;
        u16 *in_register = (u16 *)(warp->file + held[0]) + 2 * i + half;
        if (stores) *in_memory = *in_register;
        else *in_register = *in_memory;
      }
    if (!stores) warp->states[held[1]] = WRITTEN;
  }
  return DONE;
}

/* Run a warp's instructions from `pc` on, in the lanes of `mask`, which are all live ones if `full`.

   It stops before an instruction for Python, at `limit`, where other lanes wait, and after `budget`
   instructions. It may run over the budget, as nobody can tell: only branches back, accesses to
   memory and instructions for Python look at it. `split` says that other lanes wait somewhere, and a
   branch back is then Python's.

   Returns the number of instructions run, the pc, and what is next, packed as 32, 29 and 3 bits:
   0 is nothing, and the others are the answers of memory.h. */
s64 engine_run(Warp *warp, s64 pc, s64 budget, u32 mask, s64 limit, s32 full, s32 split) {
  s64 ran = 0;
  int next = 0;
  for (;;) {
    const Record *r = warp->records + warp->starts[pc];
    if (r->kind == PYTHON) {
      next = ran < budget ? TO_PYTHON : 0;
      break;
    }
    u32 running = mask;
    if (r->guard >= 0) {
      if (warp->states[r->guard_slot] != WRITTEN) {
        next = TO_PYTHON;
        break;
      }
      running &= predicate(warp, r->guard) ^ (u32)r->guard_flip;
    }
    if (r->kind == BRANCH) {
      s64 target = pc + 1;
      if (running) {
        target = r->immediate;
        if (running != mask || (split && target <= pc)) {
          next = TO_PYTHON;
          break;
        }
      }
      int back = target <= pc;
      pc = target, ran++;
      if (pc >= limit || (back && ran >= budget)) break;
      continue;
    }
    if (r->kind >= LOAD) {
      if (ran >= budget) break;
      int all = full && running == mask;
      if (!running && r->kind == LOAD) skip_load(warp, r);
      if (running) switch (r->kind) {
          case LOAD: next = load(warp, r, running, all); break;
          case STORE: next = store(warp, r, running); break;
          default: next = matrix(warp, r, all ? running : 0, r->kind == STORE_MATRIX);
        }
      if (next) break;
    } else if (running) {
      u32 lanes = full && running == mask ? ALL : running;
      int done = 1;
      for (; done && r->pc == pc; r++) switch (r->kind) {
          case VALUE: done = value(warp, r, lanes); break;
          case TEST: done = test(warp, r, lanes); break;
          case LOGIC: done = logic(warp, r, lanes); break;
          case SELECT: done = select_(warp, r, running, lanes); break;
          case MULTIPLY: done = multiply(warp, r, lanes); break;
          default: done = shuffle(warp, r, running);
        }
      if (!done) {
        next = TO_PYTHON;
        break;
      }
    }
    pc++, ran++;
    if (pc >= limit) break;
  }
  return ran << 32 | pc << 3 | next;
}
