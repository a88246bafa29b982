// out = silu(gate) * up = gate / (1 + e^-gate) * up; gate and up are the halves of each row.

struct SiluJob {
    const float *gate_up;
    int width;
    float *out;
};

constexpr int SILU_CHUNK = 1024;

void silu_chunk(void *context, int task, int) {
    const SiluJob &job = *(const SiluJob *)context;
    const int chunks = (job.width + SILU_CHUNK - 1) / SILU_CHUNK, row = task / chunks, first = task % chunks * SILU_CHUNK;
    const int end = first + SILU_CHUNK < job.width ? first + SILU_CHUNK : job.width;
    const float *gate = job.gate_up + (int64_t)row * 2 * job.width, *up = gate + job.width;
    float *out = job.out + (int64_t)row * job.width;
    int i = first;
    for (; i + LANES <= end; i += LANES) {
        const Floats g = load<Floats>(gate + i);
        store(out + i, g / (exponential(-g) + 1.0f) * load<Floats>(up + i));
    }
    for (; i < end; i++) out[i] = gate[i] / (exponential(splat(-gate[i]))[0] + 1.0f) * up[i];
}

void silu_mul(const float *gate_up, int rows, int width, float *out) {
    SiluJob job{gate_up, width, out};
    const int chunks = (width + SILU_CHUNK - 1) / SILU_CHUNK;
    run_rows(rows * chunks, (int64_t)rows * width, silu_chunk, &job);
}
