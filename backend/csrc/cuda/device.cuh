// What every kernel uses: 16-bit numbers as bits, sums over a warp, and the few instructions that C++ has no name for.
//
// NVRTC comes without CUDA's headers, so nothing here includes any. Whatever is an instruction or a keyword of the device stands in
// this file alone: with KC_EMULATED the test suite puts emulated.h in its place and runs the same kernels on a CPU.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

constexpr int WARP = 32;

#ifdef KC_EMULATED
#include "emulated.h"
#else
// NVRTC has no <math.h>.
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#endif
// Of the threads of a block and, where registers would allow fewer, of the blocks that a multiprocessor shall hold.
#define KC_KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#define KC_DEVICE __device__ __forceinline__
#define KC_SHARED __shared__
#define KC_DYNAMIC_SHARED(name) extern __shared__ uint4 name[]

KC_DEVICE void block_barrier() { __syncthreads(); }
KC_DEVICE void warp_barrier() { __syncwarp(); }
KC_DEVICE u32 shuffle_xor_bits(u32 bits, int mask) { return __shfl_xor_sync(0xffffffffu, bits, mask); }

// Bit i of the result is the vote of lane i.
KC_DEVICE u32 warp_votes(bool vote) { return __ballot_sync(0xffffffffu, vote); }
KC_DEVICE int ones(u32 bits) { return __popc(bits); }
// The place of the lowest bit that is set; bits is not 0.
KC_DEVICE int lowest_one(u32 bits) { return __ffs((int)bits) - 1; }
KC_DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
KC_DEVICE u32 as_bits(float value) { return __float_as_uint(value); }

// Bytes of the eight in low and high, chosen by the four nibbles of selector.
KC_DEVICE u32 choose_bytes(u32 low, u32 high, u32 selector) { return __byte_perm(low, high, selector); }

KC_DEVICE float half_value(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// Round to nearest, ties to even.
KC_DEVICE u16 to_bf16(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Round to nearest, ties to even; past 65504 infinity.
KC_DEVICE u32 half_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// sums [16][8] += a [16][16] * b [16][8], of float16 in pairs, by a whole warp. With g = lane / 4 and t = lane % 4 a lane holds
// of a the columns 2t, 2t + 1 of rows g and g + 8, then columns 2t + 8, 2t + 9 of both; of b the rows 2t, 2t + 1 and then
// 2t + 8, 2t + 9 of column g; of sums the columns 2t, 2t + 1 of row g and then of row g + 8.
KC_DEVICE void multiply_f16(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes that this launch reads once: not kept in the first-level cache.
KC_DEVICE uint4 load_stream(const uint4 *from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}
#endif

KC_DEVICE float shuffle_xor(float value, int mask) { return as_float(shuffle_xor_bits(as_bits(value), mask)); }

KC_DEVICE float bf16_value(u16 bits) { return as_float((u32)bits << 16); }
KC_DEVICE float low_bf16(u32 pair) { return as_float(pair << 16); }
KC_DEVICE float high_bf16(u32 pair) { return as_float(pair & 0xffff0000u); }
KC_DEVICE u32 bf16_pair(float low, float high) { return (u32)to_bf16(low) | (u32)to_bf16(high) << 16; }

KC_DEVICE u32 word_of(const uint4 &v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Of all lanes, in every lane.
KC_DEVICE float warp_sum(float value) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

KC_DEVICE float warp_max(float value) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}

struct Candidate {
    float value;
    int id;
};

// The highest of all lanes, of equal ones the lowest id, in every lane.
KC_DEVICE Candidate warp_best(Candidate own) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        const float value = shuffle_xor(own.value, mask);
        const int id = (int)shuffle_xor_bits((u32)own.id, mask);
        if (value > own.value || (value == own.value && id < own.id)) own = {value, id};
    }
    return own;
}

// Of all threads of a block of WARPS warps, in every thread. Used once per kernel: the partial sums are not guarded for reuse.
template <int WARPS> KC_DEVICE float block_sum(float value) {
    KC_SHARED float partial[WARPS];
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = value;
    block_barrier();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += partial[i];
    return sum;
}

KC_DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }
