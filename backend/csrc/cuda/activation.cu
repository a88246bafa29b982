// out = silu(gate) * up: gate_up bf16 [rows][2 * width], the gates first; out bf16 [rows][width]; width even.
#include "device.cuh"

constexpr int ACTIVATION_THREADS = 256;

KC_KERNEL(ACTIVATION_THREADS) silu_mul(const u32 *gate_up, int width, u32 *out) {
    const int pairs = width / 2, i = blockIdx.x * ACTIVATION_THREADS + threadIdx.x;
    if (i >= pairs) return;
    const long long row = blockIdx.y;
    const u32 gate = gate_up[2 * row * pairs + i], up = gate_up[(2 * row + 1) * pairs + i];
    out[row * pairs + i] = bf16_pair(silu(low_bf16(gate)) * low_bf16(up), silu(high_bf16(gate)) * high_bf16(up));
}
