// What device.cuh takes from the GPU, on a CPU: a block's threads are fibres of one real thread, which wait for each other at barriers,
// shuffles and ballots as the hardware's do. Blocks run one after another. For tests: it shows what a kernel computes.
//
// What it shows beside: a barrier or an exchange that not all threads reach (the process ends and says so), dynamic shared memory
// that is read before it was written (it holds NaNs) or written past its end, and, since the fibres run in both orders, most barriers
// that are missing inside a block. What it cannot show: races between blocks, and how fast anything is.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

using std::max;
using std::min;

#define KC_KERNEL(...) static void
#define KC_DEVICE static inline
#define KC_SHARED static
#define KC_DYNAMIC_SHARED(name) uint4 *const name = (uint4 *)emulated.dynamic_shared

struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct Index {
    u32 x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

struct Fibre {
    ucontext_t start;
    jmp_buf place;
    std::vector<char> stack;
    bool started, done;
};

struct Barrier {
    int arrived;
    unsigned generation;
};

struct Emulated {
    jmp_buf scheduler;
    std::vector<std::unique_ptr<Fibre>> fibres;
    int threads, current, living;
    bool backwards;
    Barrier block;
    std::vector<Barrier> warps;
    std::vector<u32> exchanged;
    std::vector<std::array<u32, 6>> matrices;
    unsigned char *dynamic_shared;
    void (*body)(void *);
    void *argument;
};
static Emulated emulated;

// Without a system call, which swapcontext would make each time.
static void yield_fibre() {
    const int own = emulated.current;
    if (_setjmp(emulated.fibres[own]->place) == 0) _longjmp(emulated.scheduler, 1);
    emulated.current = own;
    threadIdx.x = own;
}

static void resume(int i) {
    Fibre &fibre = *emulated.fibres[i];
    emulated.current = threadIdx.x = i;
    if (_setjmp(emulated.scheduler)) return;
    if (fibre.started) _longjmp(fibre.place, 1);
    fibre.started = true;
    setcontext(&fibre.start);
}

static void wait_for(Barrier &barrier, int members) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == members) {
        barrier.arrived = 0;
        barrier.generation++;
        return;
    }
    while (barrier.generation == generation) yield_fibre();
}

static void block_barrier() { wait_for(emulated.block, emulated.threads); }

static void warp_barrier() { wait_for(emulated.warps[threadIdx.x / WARP], WARP); }

// What every lane of the warp gave, once all have given it; valid until the next exchange.
static const u32 *exchange(u32 bits) {
    emulated.exchanged[threadIdx.x] = bits;
    warp_barrier();
    return &emulated.exchanged[threadIdx.x / WARP * WARP];
}

static u32 shuffle_xor_bits(u32 bits, int mask) {
    const u32 other = exchange(bits)[threadIdx.x % WARP ^ mask];
    warp_barrier();
    return other;
}

static u32 warp_votes(bool vote) {
    const u32 *votes = exchange(vote);
    u32 result = 0;
    for (int lane = 0; lane < WARP; lane++) result |= votes[lane] << lane;
    warp_barrier();
    return result;
}

static int ones(u32 bits) { return __builtin_popcount(bits); }
static int lowest_one(u32 bits) { return __builtin_ctz(bits); }

static float as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static u32 as_bits(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static u32 choose_bytes(u32 low, u32 high, u32 selector) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    u32 result = 0;
    for (int i = 0; i < 4; i++) result |= (u32)(bytes >> (selector >> (4 * i) & 7) * 8 & 255) << (8 * i);
    return result;
}

static float half_value(u16 bits) {
    const u32 exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY) : exponent ? ldexpf((float)(1024 + mantissa), (int)exponent - 25)
                                                                                    : ldexpf((float)mantissa, -24);
    return bits & 0x8000 ? -magnitude : magnitude;
}

static u16 to_bf16(float value) {
    const u32 bits = as_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static u16 to_half(float value) {
    const u32 bits = as_bits(value), magnitude = bits & 0x7fffffff;
    const u16 sign = (u16)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude < 0x38800000) return sign | (u16)nearbyintf(ldexpf(as_float(magnitude), 24));
    return sign | (u16)((magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13);
}

static u32 half_pair(float low, float high) { return (u32)to_half(low) | (u32)to_half(high) << 16; }

// The layout of the PTX manual, from the places of the numbers in the matrices.
static void multiply_f16(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    std::array<u32, 6> *warp = &emulated.matrices[threadIdx.x / WARP * WARP];
    warp[threadIdx.x % WARP] = {a[0], a[1], a[2], a[3], b0, b1};
    warp_barrier();
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) {
        const int row = g + i / 2 * 8, column = 2 * t + i % 2;
        for (int k = 0; k < 16; k++) {
            const u32 left = warp[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], right = warp[column * 4 + k % 8 / 2][4 + k / 8];
            sums[i] += half_value((u16)(left >> k % 2 * 16)) * half_value((u16)(right >> k % 2 * 16));
        }
    }
    warp_barrier();
}

static uint4 load_stream(const uint4 *from) { return *from; }

// A fibre serves block after block: starting one costs system calls.
static void run_fibre() {
    for (;;) {
        emulated.body(emulated.argument);
        emulated.fibres[emulated.current]->done = true;
        emulated.living--;
        yield_fibre();
    }
}

static void prepare(Fibre &fibre) {
    fibre.stack.resize(32768);
    fibre.started = false;
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = fibre.stack.data();
    fibre.start.uc_stack.ss_size = fibre.stack.size();
    fibre.start.uc_link = nullptr;
    makecontext(&fibre.start, run_fibre, 0);
}

// One block: rounds over its fibres until all are done. A full round without anybody passing a barrier or ending cannot happen
// unless the kernel waits where not all of its threads come; that would hang a GPU and ends the process here.
static void run_block() {
    emulated.living = emulated.threads;
    emulated.block = {0, 0};
    emulated.warps.assign(emulated.threads / WARP, Barrier{0, 0});
    for (int i = 0; i < emulated.threads; i++) emulated.fibres[i]->done = false;
    while (emulated.living) {
        unsigned before = emulated.block.generation + (unsigned)emulated.threads - (unsigned)emulated.living;
        for (const Barrier &warp : emulated.warps) before += warp.generation;
        for (int i = 0; i < emulated.threads; i++) {
            const int next = emulated.backwards ? emulated.threads - 1 - i : i;
            if (!emulated.fibres[next]->done) resume(next);
        }
        unsigned after = emulated.block.generation + (unsigned)emulated.threads - (unsigned)emulated.living;
        for (const Barrier &warp : emulated.warps) after += warp.generation;
        if (after == before) {
            fprintf(stderr, "emulated kernel: %d threads of block %d wait at a barrier that the others do not reach\n", emulated.living,
                    (int)blockIdx.x);
            abort();
        }
    }
}

template <typename... A> struct Call {
    void (*kernel)(A...);
    void **arguments;

    template <size_t... I> void apply(std::index_sequence<I...>) { kernel(*(std::remove_reference_t<A> *)arguments[I]...); }
    static void run(void *self) { ((Call *)self)->apply(std::index_sequence_for<A...>()); }
};

// 256 bytes after what a kernel asked for are its limit: a thread that writes there is found out, unless it goes much further.
constexpr size_t GUARD = 256;
constexpr unsigned char UNWRITTEN = 0xff;

static void check_guard(size_t shared_bytes) {
    for (size_t i = 0; i < GUARD; i++)
        if (emulated.dynamic_shared[shared_bytes + i] != UNWRITTEN) {
            fprintf(stderr, "emulated kernel: block %d wrote past its %zu bytes of shared memory\n", (int)blockIdx.x, shared_bytes);
            abort();
        }
}

// arguments: a pointer to each, as cuLaunchKernel takes them.
template <typename... A>
void emulate(void (*kernel)(A...), bool backwards, int grid_x, int grid_y, int threads, int shared_bytes, void **arguments) {
    Call<A...> call{kernel, arguments};
    if (threads % WARP) {
        fprintf(stderr, "emulated kernel: %d threads are no whole warps\n", threads);
        abort();
    }
    std::vector<uint4> shared(((size_t)shared_bytes + GUARD) / 16 + 1);
    emulated.dynamic_shared = (unsigned char *)shared.data();
    emulated.threads = threads;
    emulated.backwards = backwards;
    emulated.exchanged.assign(threads, 0);
    emulated.matrices.resize(threads);
    emulated.body = Call<A...>::run;
    emulated.argument = &call;
    while ((int)emulated.fibres.size() < threads) {
        emulated.fibres.push_back(std::make_unique<Fibre>());
        prepare(*emulated.fibres.back());
    }
    blockDim = {(u32)threads, 1, 1};
    gridDim = {(u32)grid_x, (u32)grid_y, 1};
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
            memset(shared.data(), UNWRITTEN, shared.size() * sizeof(uint4));
            run_block();
            check_guard((size_t)shared_bytes);
        }
}
