/* The interpreter of a warp's instructions that touch its own registers only.

   A program is an array of records, one or more for each instruction, in the order of their PTX. The
   engine runs them until it meets one that Python has to run: an instruction of another kind, a
   branch that splits the warp, or a register without a value. It changes nothing of such an
   instruction, so that Python can run it whole or say what is wrong. */
#include "numbers.h"

/* What a record does (records.py) */
enum { PYTHON, VALUE, TEST, LOGIC, SELECT, BRANCH, SHUFFLE };
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
} Warp;

#define IVDEP _Pragma("GCC ivdep")
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
  for (int i = 0; i < LANES; i++)
    if (lanes >> i & 1) memcpy(to + i * bytes, value + i * bytes, (size_t)bytes);
}

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
  blend(warp->file + r->to, value, state == NEVER ? ALL : lanes, r->bytes);
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

/* Run a warp's instructions from `pc` on, in the lanes of `mask`, which are all live ones if `full`.

   It stops before an instruction for Python, at `limit`, where other lanes wait, and after `budget`
   instructions. Between those it may run over the budget, as nobody can tell: only branches back
   and instructions for Python look at it. `split` says that other lanes wait somewhere, and a
   branch back is then Python's.

   Returns the number of instructions run, the pc, and whether Python has to run the instruction
   there, packed as 32, 31 and 1 bits. */
s64 engine_run(const Warp *warp, s64 pc, s64 budget, u32 mask, s64 limit, s32 full, s32 split) {
  s64 ran = 0;
  int python = 0;
  for (;;) {
    const Record *r = warp->records + warp->starts[pc];
    if (r->kind == PYTHON) {
      python = ran < budget;
      break;
    }
    u32 running = mask;
    if (r->guard >= 0) {
      if (warp->states[r->guard_slot] != WRITTEN) {
        python = 1;
        break;
      }
      running &= predicate(warp, r->guard) ^ (u32)r->guard_flip;
    }
    if (r->kind == BRANCH) {
      s64 target = pc + 1;
      if (running) {
        target = r->immediate;
        if (running != mask || (split && target <= pc)) {
          python = 1;
          break;
        }
      }
      int back = target <= pc;
      pc = target, ran++;
      if (pc >= limit || (back && ran >= budget)) break;
      continue;
    }
    if (running) {
      u32 lanes = full && running == mask ? ALL : running;
      int done = 1;
      for (; done && r->pc == pc; r++) switch (r->kind) {
          case VALUE: done = value(warp, r, lanes); break;
          case TEST: done = test(warp, r, lanes); break;
          case LOGIC: done = logic(warp, r, lanes); break;
          case SELECT: done = select_(warp, r, running, lanes); break;
          default: done = shuffle(warp, r, running);
        }
      if (!done) {
        python = 1;
        break;
      }
    }
    pc++, ran++;
    if (pc >= limit) break;
  }
  return ran << 32 | pc << 1 | python;
}
