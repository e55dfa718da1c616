#undef _FORTIFY_SOURCE /* which takes a longjmp to another stack for an error */

#include "tests/emulated/emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <condition_variable>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

#include "tests/emulated/emulated.h"

namespace emulator {

__thread Index thread, cta;
__thread uint8_t* shared;
Index ctas, threads;
tdm_step_sync step;

namespace {

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};
struct Product {
  float* d;
  int n;
  uint64_t a, b;
  bool accumulate, bf16, transposed_a;
};
/* Work in the background: what is not committed yet, and groups that are. */
template <class Work> struct Groups {
  std::vector<Work> open;
  std::deque<std::vector<Work>> committed;

  void commit() {
    committed.push_back(std::move(open));
    open.clear();
  }
  template <class Do> void wait(size_t most, Do perform) {
    while (committed.size() > most) {
      for (const Work& work : committed.front()) perform(work);
      committed.pop_front();
    }
  }
  bool empty() const {
    return open.empty() && committed.empty();
  }
};

struct Fiber {
  ucontext_t context; /* where it begins */
  jmp_buf at;         /* where it goes on: without a call of the system, which swapcontext makes */
  bool begun;
  std::unique_ptr<char[]> stack;
  bool done;
  const uint32_t* word; /* goes on when this is no longer `value`; NULL: at once */
  uint32_t value;
  const char* waits_for;
  Groups<Copy> copies;
  Groups<Product> products;
};
/* Where lanes, or threads, meet. Values lie in one of two places in turn: a lane may be at the next meeting already. */
struct Meeting {
  uint32_t arrived, generation;
  uint32_t values[2][32];
};
struct Barrier {
  uint32_t count, pending;
  int64_t bytes;
  uint32_t phase;
};
struct TileCopy {
  uint8_t* to;
  tdm_tensor_tile tile;
  const uint64_t* barrier;
  int64_t x[4];
};

/* Arrives at the barrier when a thread's copies are done. */
struct Arrival {
  unsigned thread;
  std::vector<Copy> copies;
  const uint64_t* barrier;
};

enum {
  STACK_BYTES = 128 * 1024,
  MOST_SHARED = 256 * 1024,
  GUARD_BYTES = 4096,
  NAMED_BARRIERS = 16,
  MOST_RESIDENT = 12,
  MOST_POLLS = 1 << 18,
  NOBODY = -1
};

/* What a CTA has while it is resident. */
struct Cta {
  std::vector<uint8_t> memory = std::vector<uint8_t>(MOST_SHARED + GUARD_BYTES + 1024);
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting named[NAMED_BARRIERS];
  std::unordered_map<const uint64_t*, Barrier> barriers;
  std::vector<TileCopy> tile_copies;
  std::vector<Arrival> arrivals;
  jmp_buf scheduler;
  uint64_t progress; /* waits that came to an end, copies that arrived, threads that ended */
  int behind;        /* a warp that is left behind for so many turns */
  uint64_t turns_behind;
  bool polls; /* perhaps waits for another CTA */
};

const Kernels* known;
std::mt19937_64 chance;
void (*body)(const void*);
const void* parameters;
const tdm_kernel_launch* launched;
std::vector<unsigned> waiting; /* CTAs that are not resident yet */
uint32_t polls;                /* of the launch */
__thread Cta* here;

/* One CTA runs at a time, each in a thread of the system, so that static shared memory is thread_local. */
std::mutex mutex;
std::condition_variable handed_on;
std::vector<int> resident;
int running, behind; /* one is left behind for a while */
uint64_t turns_behind;
__thread int me;

int anybody() {
  if (turns_behind == 0) {
    behind = resident[chance() % resident.size()];
    turns_behind = 1 + chance() % 64;
  }
  --turns_behind;
  int id = resident[chance() % resident.size()];
  while (id == behind && resident.size() > 1) id = resident[chance() % resident.size()];
  return id;
}

void hand_on() {
  std::unique_lock<std::mutex> lock(mutex);
  running = anybody();
  if (running == me) return;
  handed_on.notify_all();
  handed_on.wait(lock, [] { return running == me; });
}

Fiber& self() {
  return here->fibers[thread.x];
}

void let_others() {
  if (_setjmp(self().at) == 0) _longjmp(here->scheduler, 1);
}

void go_on(Fiber& fiber) {
  if (_setjmp(here->scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}

/* Where other threads may come in between. */
void hesitate() {
  if (chance() % 16 != 0) return;
  ++here->progress;
  let_others();
}

void wait_while(const uint32_t& word, uint32_t value, const char* name) {
  Fiber& fiber = self();
  if (word != value) return;
  fiber.word = &word;
  fiber.value = value;
  fiber.waits_for = name;
  while (word == value) let_others();
  fiber.word = nullptr;
  ++here->progress;
}

void meet(Meeting& meeting, unsigned count, const char* name) {
  const uint32_t generation = meeting.generation;
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    ++meeting.generation;
    ++here->progress;
    return;
  }
  wait_while(meeting.generation, generation, name);
}

Barrier& barrier_at(const uint64_t* address) {
  const auto found = here->barriers.find(address);
  if (found == here->barriers.end()) refuse("uses an mbarrier before it is initialised");
  return found->second;
}

void end_phase(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.count;
  ++here->progress;
}

void perform(const Copy& copy) {
  memcpy(copy.to, copy.from, copy.bytes);
}

size_t swizzled(size_t address) {
  return address ^ (address >> 7 & 7) << 4;
}

int64_t element_bytes(const tdm_tensor_tile& tile) {
  return tile.dtype == TDM_E4M3 ? 1 : tile.dtype == TDM_BF16 ? 2 : 4;
}

/* Of the box. */
size_t tile_bytes(const tdm_tensor_tile& tile) {
  size_t bytes = static_cast<size_t>(element_bytes(tile));
  for (uint32_t i = 0; i < tile.rank; ++i) bytes *= tile.box[i];
  return bytes;
}

void deliver(const TileCopy& copy) {
  const tdm_tensor_tile& tile = copy.tile;
  const int64_t size = element_bytes(tile), row_bytes = tile.box[0] * size;
  const int64_t rows = static_cast<int64_t>(tile_bytes(tile)) / row_bytes;
  size_t to = static_cast<size_t>(copy.to - shared);
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* from = static_cast<const uint8_t*>(tile.data);
    bool inside = true;
    int64_t left = row;
    for (uint32_t i = 1; i < tile.rank; ++i) {
      const int64_t x = copy.x[i] + left % tile.box[i];
      inside = inside && x >= 0 && x < static_cast<int64_t>(tile.dim[i]);
      from += x * static_cast<int64_t>(tile.stride_bytes[i - 1]);
      left /= tile.box[i];
    }
    for (int64_t byte = 0; byte < row_bytes; ++byte, ++to) {
      const int64_t x0 = copy.x[0] + byte / size;
      const bool there = inside && x0 >= 0 && x0 < static_cast<int64_t>(tile.dim[0]);
      shared[tile.swizzle ? swizzled(to) : to] = there ? from[copy.x[0] * size + byte] : 0;
    }
  }
  Barrier& barrier = barrier_at(copy.barrier);
  barrier.bytes -= static_cast<int64_t>(tile_bytes(tile));
  ++here->progress;
  end_phase(barrier);
}

/* Values of the codes of e4m3. */
const float* e4m3_values() {
  static float values[256];
  if (isnan(values[0x7f])) return values;
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const float magnitude = exponent ? ldexpf(1.0f + static_cast<float>(fraction) / 8, exponent - 7)
                                     : ldexpf(static_cast<float>(fraction), -9);
    values[code] = code & 0x80 ? -magnitude : magnitude;
  }
  values[0x7f] = values[0xff] = NAN;
  return values;
}

float from_bf16(const uint8_t* at) {
  uint16_t bits;
  memcpy(&bits, at, 2);
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

/* 16 bytes of an operand in shared memory. */
const uint8_t* chunk(size_t address) {
  if (address + 16 > launched->shared_bytes) refuse("multiplies what lies outside of shared memory");
  return shared + swizzled(address);
}

/* A row of an operand, 32 values along K of e4m3 or 16 of bf16. Rows of 128 bytes under the swizzle, eight of them 1024
 * bytes apart. Transposed: a row of memory is a k, 64 elements long. */
void load_row(float (&values)[32], uint64_t descriptor, int row, bool bf16, bool transposed) {
  if (descriptor >> 62 != 1 || (descriptor >> 32 & 0x3fff) != 64)
    refuse("multiplies by a descriptor of another layout");
  const size_t start = (descriptor & 0x3fff) << 4;
  const auto line = [&](int i) { return start + static_cast<size_t>(i / 8 * 1024 + i % 8 * 128); };
  if (transposed) {
    for (int k = 0; k < 16; ++k) values[k] = from_bf16(chunk(line(k) + row / 8 * 16) + row % 8 * 2);
    return;
  }
  for (int half = 0; half < 2; ++half) {
    const uint8_t* from = chunk(line(row) + 16 * half);
    for (int i = 0; bf16 && i < 8; ++i) values[8 * half + i] = from_bf16(from + 2 * i);
    for (int i = 0; !bf16 && i < 16; ++i) values[16 * half + i] = e4m3_values()[from[i]];
  }
}

/* The fiber's elements, products summed exactly. */
void multiply_now(const Product& p) {
  const int lane = static_cast<int>(thread.x % 32), row = 16 * static_cast<int>(thread.x % 128 / 32) + lane / 4;
  float a[2][32], b[32];
  for (int half = 0; half < 2; ++half) load_row(a[half], p.a, row + 8 * half, p.bf16, p.transposed_a);
  for (int column = 0; column < p.n / 4; ++column) {
    load_row(b, p.b, 8 * (column / 2) + 2 * (lane % 4) + column % 2, p.bf16, false);
    for (int half = 0; half < 2; ++half) {
      float& d = p.d[4 * (column / 2) + 2 * half + column % 2];
      double sum = p.accumulate ? static_cast<double>(d) : 0;
      for (int k = 0; k < (p.bf16 ? 16 : 32); ++k) sum += static_cast<double>(a[half][k]) * static_cast<double>(b[k]);
      d = static_cast<float>(sum);
    }
  }
}

void enter() {
  body(parameters);
  self().done = true;
  ++here->progress;
  for (;;) let_others();
}

void prepare() {
  Cta& c = *here;
  const unsigned block = launched->block;
  shared = c.memory.data() + (1024 - reinterpret_cast<uintptr_t>(c.memory.data()) % 1024) % 1024;
  memset(shared, 0xff, launched->shared_bytes);
  memset(shared + launched->shared_bytes, 0xa5, GUARD_BYTES);
  c.barriers.clear();
  c.warps.assign(block / 32, {});
  for (Meeting& meeting : c.named) meeting = {};
  c.progress = c.turns_behind = 0;
  c.behind = NOBODY;
  if (c.fibers.size() < block) c.fibers.resize(block);
  for (unsigned i = 0; i < block; ++i) {
    Fiber& fiber = c.fibers[i];
    fiber.done = fiber.begun = false;
    fiber.word = nullptr;
    if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
}

/* One turn of all fibers but those of the warp that is left behind. Answers whether any is left. */
bool take_turns(std::vector<unsigned>& order) {
  Cta& c = *here;
  bool left = false;
  if (chance() % 4 == 0) std::shuffle(order.begin(), order.end(), chance);
  if (c.turns_behind == 0) {
    c.behind = static_cast<int>(chance() % (3 * c.warps.size()));
    c.turns_behind = 1 + chance() % 24;
  }
  --c.turns_behind;
  for (const unsigned i : order) {
    Fiber& fiber = c.fibers[i];
    if (fiber.done) continue;
    left = true;
    if (static_cast<int>(i / 32) == c.behind || (fiber.word && *fiber.word == fiber.value)) continue;
    thread.x = i;
    go_on(fiber);
  }
  return left;
}

void arrive(const uint64_t* address) {
  Barrier& barrier = barrier_at(address);
  if (barrier.pending == 0) refuse("arrives once too often at an mbarrier");
  --barrier.pending;
  end_phase(barrier);
}

/* Those of a thread in order, as it asked for them. */
void arrive_some(bool all) {
  std::vector<Arrival> left;
  std::vector<bool> held(here->fibers.size());
  for (Arrival& arrival : here->arrivals) {
    if (held[arrival.thread] || (!all && chance() % 3 != 0)) {
      held[arrival.thread] = true;
      left.push_back(std::move(arrival));
      continue;
    }
    for (const Copy& copy : arrival.copies) perform(copy);
    arrive(arrival.barrier);
    ++here->progress;
  }
  here->arrivals = std::move(left);
}

void deliver_some(bool all) {
  std::vector<TileCopy>& copies = here->tile_copies;
  for (size_t i = 0; i < copies.size();) {
    if (!all && chance() % 3 != 0) {
      ++i;
      continue;
    }
    const TileCopy copy = copies[i];
    copies.erase(copies.begin() + static_cast<long>(i));
    deliver(copy);
  }
  if (!here->arrivals.empty()) arrive_some(all);
}

[[noreturn]] void stuck() {
  for (size_t warp = 0; warp < here->warps.size(); ++warp) {
    const Fiber &first = here->fibers[32 * warp], &last = here->fibers[32 * warp + 31];
    (void)fprintf(stderr, "  warp %zu: lane 0 %s, lane 31 %s\n", warp, first.done ? "is done" : first.waits_for,
                  last.done ? "is done" : last.waits_for);
  }
  refuse("is stuck");
}

void run_cta(unsigned index) {
  Cta& c = *here;
  std::vector<unsigned> order(launched->block);
  for (unsigned i = 0; i < launched->block; ++i) order[i] = i;
  cta.x = index;
  prepare();
  for (;;) {
    const uint64_t before = c.progress;
    c.polls = false;
    if (!take_turns(order)) break;
    deliver_some(false);
    if (c.polls || chance() % 16 == 0) hand_on();
    if (c.progress != before) continue;
    if (c.behind != NOBODY) {
      c.behind = NOBODY;
    } else {
      if (c.tile_copies.empty() && c.arrivals.empty()) stuck();
      deliver_some(true);
    }
  }
  if (!c.tile_copies.empty() || !c.arrivals.empty()) refuse("ends under a copy");
  for (unsigned i = 0; i < launched->block; ++i)
    if (!c.fibers[i].copies.empty() || !c.fibers[i].products.empty()) refuse("ends with copies or products under way");
  for (int i = 0; i < GUARD_BYTES; ++i)
    if (shared[launched->shared_bytes + i] != 0xa5) refuse("writes past its shared memory");
}

/* An SM: CTAs one after the other while there are some. */
void run_ctas(int id, Cta* room) {
  me = id;
  here = room;
  {
    std::unique_lock<std::mutex> lock(mutex);
    handed_on.wait(lock, [] { return running == me; });
  }
  while (!waiting.empty()) {
    const unsigned index = waiting.back();
    waiting.pop_back();
    run_cta(index);
  }
  std::unique_lock<std::mutex> lock(mutex);
  resident.erase(std::find(resident.begin(), resident.end(), id));
  running = resident.empty() ? NOBODY : anybody();
  handed_on.notify_all();
}

} // namespace

Kernels::Kernels(const Kernel* kernels, size_t n) : first(kernels), count(n), next(known) {
  known = this;
}

void refuse(const char* what) {
  (void)fprintf(stderr, "%s, CTA %u, thread %u: %s\n", launched->kernel, cta.x, thread.x, what);
  abort();
}

void exchange(uint32_t value, uint32_t (&all)[32]) {
  Meeting& warp = here->warps[thread.x / 32];
  uint32_t(&values)[32] = warp.values[warp.generation & 1];
  values[thread.x % 32] = value;
  meet(warp, 32, "waits for its warp");
  memcpy(all, values, sizeof all);
}

void barrier(unsigned id, unsigned count) {
  if (id >= NAMED_BARRIERS) refuse("has no such named barrier");
  meet(here->named[id], count, "waits at a barrier");
}

void mbarrier_init(const uint64_t* barrier, uint32_t count) {
  here->barriers[barrier] = {count, count, 0, 0};
}

void mbarrier_arrive(const uint64_t* address, uint32_t expected_bytes) {
  barrier_at(address).bytes += expected_bytes;
  arrive(address);
  hesitate();
}

void mbarrier_wait(const uint64_t* address, uint32_t parity) {
  wait_while(barrier_at(address).phase, parity, "waits at an mbarrier");
  hesitate();
}

void copy_tile(void* to, const tdm_tensor_map* map, const uint64_t* barrier, int32_t x0, int32_t x1, int32_t x2,
               int32_t x3) {
  TileCopy copy = {static_cast<uint8_t*>(to), {}, barrier, {x0, x1, x2, x3}};
  memcpy(&copy.tile, map, sizeof copy.tile); /* as emulated_encode left it */
  if (static_cast<size_t>(copy.to - shared) % (copy.tile.swizzle ? 1024 : 128) != 0)
    refuse("copies a tile to where it may not begin");
  if (static_cast<size_t>(copy.to - shared) + tile_bytes(copy.tile) > launched->shared_bytes)
    refuse("copies a tile past its shared memory");
  here->tile_copies.push_back(copy);
}

void copy_async(void* to, const void* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    refuse("copies from or to an address that is not aligned");
  self().copies.open.push_back({to, from, bytes});
}

void copy_commit() {
  self().copies.commit();
}

void copy_wait(size_t most) {
  self().copies.wait(most, perform);
}

void copy_arrive(const uint64_t* barrier) {
  Arrival arrival = {thread.x, {}, barrier};
  self().copies.commit();
  self().copies.wait(0, [&](const Copy& copy) { arrival.copies.push_back(copy); });
  here->arrivals.push_back(std::move(arrival));
}

void multiply(float* d, int n, uint64_t a, uint64_t b, bool accumulate, bool bf16, bool transposed_a) {
  self().products.open.push_back({d, n, a, b, accumulate, bf16, transposed_a});
}

void multiply_commit() {
  self().products.commit();
}

void multiply_wait(size_t most) {
  hesitate();
  self().products.wait(most, multiply_now);
  __syncwarp(); /* warps wait together */
}

uint8_t to_e4m3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return 0x7f;
  uint8_t nearest = 0;
  for (uint8_t code = 1; code <= 0x7e; ++code) { /* ties to the even code */
    const float below = fabsf(fabsf(value) - e4m3_values()[nearest]), above = fabsf(e4m3_values()[code] - fabsf(value));
    if (above < below || (above == below && code % 2 == 0)) nearest = code;
  }
  return sign | nearest;
}

void poll() {
  if (++polls > MOST_POLLS) refuse("waits without end for another CTA");
  here->polls = true;
  ++here->progress;
  let_others();
}

int64_t clock() {
  static int64_t now;
  poll();
  return now += chance() % 256 == 0 ? 1000000 : 200;
}

} // namespace emulator

using namespace emulator;

extern "C" tdm_status emulated_encode(void* ctx, const tdm_tensor_tile* tile, tdm_tensor_map* out_map) {
  (void)ctx;
  static_assert(sizeof *tile <= sizeof *out_map, "a map holds a tile");
  *out_map = {};
  memcpy(out_map, tile, sizeof *tile);
  return TDM_OK;
}

extern "C" bool emulated_launch(const tdm_encoded_launch* encoded, uint64_t seed) {
  alignas(64) static uint8_t params[TDM_KERNEL_PARAMS_BYTES];
  static Cta rooms[MOST_RESIDENT];
  launched = &encoded->launch;
  body = nullptr;
  for (const Kernels* some = known; some; some = some->next)
    for (size_t i = 0; i < some->count; ++i)
      if (strcmp(some->first[i].name, launched->kernel) == 0) body = some->first[i].call;
  if (!body) return false;
  if (launched->shared_bytes > MOST_SHARED) refuse("asks for more shared memory than there is");
  memcpy(params, encoded->params, sizeof params);
  parameters = params;
  ctas.x = launched->grid;
  threads.x = launched->block;
  chance.seed(seed);
  polls = 0;
  turns_behind = 0;
  step = {};
  step.publishes = -1;
  step.fetches_ahead = chance() % 2;
  step.reads_ahead = step.fetches_ahead != 0 && chance() % 2 != 0;
  waiting.resize(launched->grid);
  for (unsigned i = 0; i < launched->grid; ++i) waiting[i] = i;
  std::shuffle(waiting.begin(), waiting.end(), chance);
  resident.resize(std::min<size_t>(launched->grid, 1 + chance() % MOST_RESIDENT));
  std::vector<std::thread> sms;
  running = NOBODY;
  for (size_t i = 0; i < resident.size(); ++i) resident[i] = static_cast<int>(i);
  for (const int id : std::vector<int>(resident)) sms.emplace_back(run_ctas, id, &rooms[id]);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    running = resident[0];
    handed_on.notify_all();
  }
  for (std::thread& sm : sms) sm.join();
  return true;
}
