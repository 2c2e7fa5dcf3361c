/* Accesses of a warp to memory, where nothing is wrong with them.

   The shadow of shared memory says for each byte which event wrote it and which group of events has
   read it since (memory/shadow.py). Global memory has the CTA that wrote each byte. An access is
   done here if every byte it touches is known to be in order. Otherwise Python runs the instruction
   by its own rules, and reports what is wrong. So each check here may only be stricter. */
#ifndef MEMORY_H
#define MEMORY_H

#include "numbers.h"

/* State spaces, as accesses.py numbers them */
enum { GENERIC, GLOBAL, SHARED, PARAMETER };
/* Why an instruction was not run: Python runs it, or it says something first and tries again. */
enum { DONE, TO_PYTHON, ASK_EVENT, ASK_READERS, ASK_CLEAR, ASK_TENSOR };

#define SHARED_WINDOW (1ull << 58)
#define PARAMETER_WINDOW (1ull << 59)
#define SHARED_BASE 1024
#define MEMO 256

typedef struct {
  u64 base, end;
  s32 *writers; /* for each byte the CTA that wrote it, plus 1; 0 if there is no record yet */
  s64 output;   /* whether its bytes have to be written before they are read */
} Tensor;

typedef struct {
  s64 key, value;
} Memo;

typedef struct {
  s64 checks;
  u8 *shared;
  s32 *writers, *readers; /* the shadow of shared memory */
  s64 shared_size;
  u64 rank; /* the CTA's rank in a shared address, in place */
  const Tensor *tensors;
  s64 tensor_count;
  s64 cta; /* the CTA's number in the grid, plus 1 */
  const u8 *parameters;
  s64 parameters_size;
  s64 *recorded; /* for each tensor the event by which a write of the warp is recorded */
  /* What follows changes with what the warp has observed. */
  const u64 *seen; /* the events that it has observed, a bit for each */
  s64 seen_words;
  s64 shared_event; /* that of its accesses to shared memory now; 0 if it has none yet */
  s64 global_event; /* the same for global memory */
  s64 may_global;   /* whether it has waited for earlier grids */
  s64 generation;   /* of what it has observed; it makes older memos invalid */
  Memo *reads;      /* the group that a read makes of a group of readers */
  Memo *clears;     /* groups of readers that the warp has all waited for */
  s64 question;     /* what a question is about */
} Memory;

static inline Memo *memo(Memo *memos, s64 group) { return memos + (group & (MEMO - 1)); }

static inline s64 memo_key(const Memory *m, s64 group) { return m->generation << 32 | group; }

static inline int is_seen(const Memory *m, s32 event) {
  return event >> 6 < m->seen_words && (m->seen[event >> 6] >> (event & 63) & 1);
}

/* Find the shared bytes of a lane, which must be the CTA's own; 0 if they are not. */
static inline int own_shared(const Memory *m, u64 address, s64 width, s64 *offset) {
  *offset = (s64)(address & 0xffffff);
  return (address & ~0xffffffull) == m->rank && *offset >= SHARED_BASE &&
         *offset + width <= m->shared_size && !(*offset & (width - 1));
}

/* Say whether all of some cells are alike; the widths of accesses are constants for the compiler. */
static inline int alike(const s32 *cells, s64 width) {
  s32 differ = 0;
  switch (width) {
    case 4: for (int i = 1; i < 4; i++) differ |= cells[i] ^ cells[0]; break;
    case 8: for (int i = 1; i < 8; i++) differ |= cells[i] ^ cells[0]; break;
    case 16: for (int i = 0; i < 16; i++) differ |= cells[i] ^ cells[0]; break;
    default: for (s64 i = 1; i < width; i++) differ |= cells[i] ^ cells[0];
  }
  return !differ;
}

static inline void fill(s32 *cells, s64 width, s32 value) {
  switch (width) {
    case 4: for (int i = 0; i < 4; i++) cells[i] = value; break;
    case 8: for (int i = 0; i < 8; i++) cells[i] = value; break;
    case 16: for (int i = 0; i < 16; i++) cells[i] = value; break;
    default: for (s64 i = 0; i < width; i++) cells[i] = value;
  }
}

/* A writer and a group of readers that are known to be in order for an instruction's access */
typedef struct {
  s32 writer, group;
} InOrder;

static int may_read_cell(Memory *m, s32 writer, s32 group, InOrder *known) {
  if (writer != known->writer) {
    if (writer <= 0 || !is_seen(m, writer)) return TO_PYTHON;
    known->writer = writer;
  }
  if (group != known->group) {
    if (memo(m->reads, group)->key != memo_key(m, group)) {
      m->question = group;
      return ASK_READERS;
    }
    known->group = group;
  }
  return DONE;
}

static int may_write_cell(Memory *m, s32 writer, s32 group, InOrder *known) {
  if (writer != known->writer) {
    if (writer < 0 || (writer && !is_seen(m, writer))) return TO_PYTHON;
    known->writer = writer;
  }
  if (group != known->group) {
    if (memo(m->clears, group)->key != memo_key(m, group)) {
      m->question = group;
      return ASK_CLEAR;
    }
    if (!memo(m->clears, group)->value) return TO_PYTHON;
    known->group = group;
  }
  return DONE;
}

static int may_access_shared(Memory *m, s64 offset, s64 width, int writes, InOrder *known) {
  const s32 *writers = m->writers + offset, *readers = m->readers + offset;
  s64 count = alike(writers, width) && alike(readers, width) ? 1 : width;
  for (s64 i = 0; i < count; i++) {
    int answer = writes ? may_write_cell(m, writers[i], readers[i], known)
                        : may_read_cell(m, writers[i], readers[i], known);
    if (answer != DONE) return answer;
  }
  return DONE;
}

/* A byte without a memo was read by an earlier lane of the same instruction. */
static inline s32 read_by(const Memory *m, s32 group) {
  const Memo *known = memo(m->reads, group);
  return known->key == memo_key(m, group) ? (s32)known->value : group;
}

static void read_shared(Memory *m, s64 offset, s64 width) {
  s32 *readers = m->readers + offset;
  if (alike(readers, width)) fill(readers, width, read_by(m, *readers));
  else
    for (s64 i = 0; i < width; i++) readers[i] = read_by(m, readers[i]);
}

static void wrote_shared(Memory *m, s64 offset, s64 width) {
  fill(m->writers + offset, width, (s32)m->shared_event);
  fill(m->readers + offset, width, 0);
}

static const Tensor *tensor_at(const Memory *m, u64 address, s64 width) {
  for (s64 i = 0; i < m->tensor_count; i++) {
    const Tensor *tensor = m->tensors + i;
    if (address >= tensor->base && address + (u64)width <= tensor->end) return tensor;
  }
  return 0;
}

/* `strong` loads may race with other CTAs. */
static int may_read_global(const Memory *m, const Tensor *tensor, u64 address, s64 width,
                           int strong) {
  if (!m->checks) return DONE;
  if (!tensor->writers) return tensor->output ? TO_PYTHON : DONE;
  const s32 *writers = tensor->writers + (address - tensor->base);
  if (alike(writers, width)) width = 1;
  for (s64 i = 0; i < width; i++) {
    if (tensor->output && !writers[i]) return TO_PYTHON;
    if (!strong && writers[i] > 0 && writers[i] != m->cta) return TO_PYTHON;
  }
  return DONE;
}

static int may_write_global(Memory *m, const Tensor *tensor, u64 address, s64 width) {
  if (!m->checks) return DONE;
  if (!tensor->writers) return TO_PYTHON;
  if (m->recorded[tensor - m->tensors] != m->global_event) {
    m->question = tensor - m->tensors;
    return ASK_TENSOR;
  }
  const s32 *writers = tensor->writers + (address - tensor->base);
  if (alike(writers, width)) width = 1;
  for (s64 i = 0; i < width; i++)
    if (writers[i] > 0 && writers[i] != m->cta) return TO_PYTHON;
  return DONE;
}

/* Find where an access of each lane goes, and check all of them before any is done. The places are
   pointers to the bytes; those of shared memory also have offsets. */
typedef struct {
  int space;
  u8 *bytes[LANES];
  s64 offsets[LANES];
  s32 *written[LANES]; /* the writers of global bytes, where they are recorded */
} Places;

static int find(Memory *m, Places *places, int space, const u64 *addresses, u32 lanes, s64 width,
                int writes, int strong) {
  const Tensor *tensor = 0;
  InOrder known = {writes ? 0 : -2, writes ? 0 : -1}; /* a first write needs no wait */
  u64 first = addresses[__builtin_ctz(lanes)];
  if (space == GENERIC)
    space = first & SHARED_WINDOW ? SHARED : first & PARAMETER_WINDOW ? PARAMETER : GLOBAL;
  places->space = space;
  if (m->checks && ((space == SHARED && !m->shared_event) ||
                    (space == GLOBAL && writes && !m->global_event))) {
    m->question = space == GLOBAL;
    return ASK_EVENT;
  }
  if (space == GLOBAL && !m->may_global) return TO_PYTHON;
  for (int i = 0; i < LANES; i++) {
    if (!(lanes >> i & 1)) continue;
    u64 address = addresses[i];
    int answer = DONE;
    if (space == SHARED) {
      address &= SHARED_WINDOW - 1;
      if (!own_shared(m, address, width, places->offsets + i)) return TO_PYTHON;
      places->bytes[i] = m->shared + places->offsets[i];
      if (m->checks)
        answer = may_access_shared(m, places->offsets[i], width, writes, &known);
    } else if (space == GLOBAL) {
      if (address & (u64)(width - 1)) return TO_PYTHON;
      if (!tensor || address < tensor->base || address + (u64)width > tensor->end)
        tensor = tensor_at(m, address, width);
      if (!tensor) return TO_PYTHON;
      places->bytes[i] = (u8 *)address;
      places->written[i] = tensor->writers ? tensor->writers + (address - tensor->base) : 0;
      answer = writes ? may_write_global(m, tensor, address, width)
                      : may_read_global(m, tensor, address, width, strong);
    } else {
      address &= PARAMETER_WINDOW - 1;
      if (writes || address & (u64)(width - 1)) return TO_PYTHON;
      if (address + (u64)width > (u64)m->parameters_size) return TO_PYTHON;
      places->bytes[i] = (u8 *)(uintptr_t)m->parameters + address;
    }
    if (answer != DONE) return answer;
  }
  return DONE;
}

/* Record the reads or writes of places that have been found. */
static void record(Memory *m, const Places *places, u32 lanes, s64 width, int writes) {
  if (!m->checks || places->space == PARAMETER) return;
  for (int i = 0; i < LANES; i++) {
    if (!(lanes >> i & 1)) continue;
    if (places->space == SHARED && writes) wrote_shared(m, places->offsets[i], width);
    if (places->space == SHARED && !writes) read_shared(m, places->offsets[i], width);
    if (places->space == GLOBAL && writes)
      fill(places->written[i], width, (s32)m->cta);
  }
}

#endif
