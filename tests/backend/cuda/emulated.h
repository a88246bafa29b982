// What device.cuh takes from the GPU, on a CPU: a block's threads are fibres of one real thread, which wait for each other at barriers
// and shuffles as the hardware's do. Blocks run one after another. For tests: it shows what a kernel computes, not how fast, and not
// whether it forgets a barrier that the order of the fibres happens to make up for.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

using std::min;

#define KC_KERNEL(threads) static void
#define KC_DEVICE static inline
#define KC_SHARED static
#define KC_DYNAMIC_SHARED(name) uint4 *name = (uint4 *)emulated.dynamic_shared

struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct Index {
    int x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

struct Fibre {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
};

struct Barrier {
    int arrived;
    unsigned generation;
};

struct Emulated {
    ucontext_t scheduler;
    std::vector<std::unique_ptr<Fibre>> fibres;
    int threads, current, living;
    Barrier block;
    std::vector<Barrier> warps;
    std::vector<float> shuffled;
    unsigned char *dynamic_shared;
    void (*body)(void *);
    void *argument;
};
static Emulated emulated;

static void yield_fibre() {
    const int own = emulated.current;
    swapcontext(&emulated.fibres[own]->context, &emulated.scheduler);
    emulated.current = own;
    threadIdx.x = own;
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

static float shuffle_xor(float value, int mask) {
    const int own = threadIdx.x;
    Barrier &warp = emulated.warps[own / WARP];
    emulated.shuffled[own] = value;
    wait_for(warp, WARP);
    const float other = emulated.shuffled[own ^ mask];
    wait_for(warp, WARP);
    return other;
}

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

static uint4 load_stream(const uint4 *from) { return *from; }

static void run_fibre() {
    emulated.body(emulated.argument);
    Fibre &own = *emulated.fibres[emulated.current];
    own.done = true;
    emulated.living--;
    swapcontext(&own.context, &emulated.scheduler);
}

// One block: rounds over its fibres until all are done. A full round without anybody passing a barrier or ending cannot happen
// unless the kernel waits where not all of its threads come; that would hang a GPU and ends the process here.
static void run_block() {
    emulated.living = emulated.threads;
    emulated.block = {0, 0};
    emulated.warps.assign(emulated.threads / WARP, Barrier{0, 0});
    for (int i = 0; i < emulated.threads; i++) {
        Fibre &fibre = *emulated.fibres[i];
        fibre.done = false;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, run_fibre, 0);
    }
    while (emulated.living) {
        unsigned before = emulated.block.generation + (unsigned)emulated.threads - (unsigned)emulated.living;
        for (const Barrier &warp : emulated.warps) before += warp.generation;
        for (int i = 0; i < emulated.threads; i++) {
            if (emulated.fibres[i]->done) continue;
            emulated.current = threadIdx.x = i;
            swapcontext(&emulated.scheduler, &emulated.fibres[i]->context);
        }
        unsigned after = emulated.block.generation + (unsigned)emulated.threads - (unsigned)emulated.living;
        for (const Barrier &warp : emulated.warps) after += warp.generation;
        if (after == before) {
            fprintf(stderr, "emulated kernel: %d threads of block %d wait at a barrier that the others do not reach\n", emulated.living, blockIdx.x);
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

// arguments: a pointer to each, as cuLaunchKernel takes them.
template <typename... A> void emulate(void (*kernel)(A...), int grid_x, int grid_y, int threads, int shared_bytes, void **arguments) {
    Call<A...> call{kernel, arguments};
    std::vector<uint4> shared((size_t)shared_bytes / 16 + 1);
    emulated.dynamic_shared = (unsigned char *)shared.data();
    emulated.threads = threads;
    emulated.shuffled.assign(threads, 0.0f);
    emulated.body = Call<A...>::run;
    emulated.argument = &call;
    while ((int)emulated.fibres.size() < threads) {
        emulated.fibres.push_back(std::make_unique<Fibre>());
        emulated.fibres.back()->stack.resize(32768);
    }
    blockDim = {threads, 1, 1};
    gridDim = {grid_x, grid_y, 1};
    for (blockIdx.y = 0; blockIdx.y < grid_y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < grid_x; blockIdx.x++) run_block();
}
