// The rate of float multiply-adds from registers: the yardstick of attention.

constexpr int PROBE_CHAINS = 12;  // more than latency x units of any known core

void multiply_chains(void *context, int task, int) {
    const int64_t repetitions = *(const int64_t *)context;
    Floats sums[PROBE_CHAINS];
    for (int i = 0; i < PROBE_CHAINS; i++) sums[i] = splat((float)(task + i));
    const Floats a = splat(0.999f), b = splat(1e-3f);
    for (int64_t n = 0; n < repetitions; n++)
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
#pragma GCC unroll 12
            for (int i = 0; i < PROBE_CHAINS; i++) sums[i] = sums[i] * a + b;
    Floats total = {};
    for (int i = 0; i < PROBE_CHAINS; i++) total += sums[i];
    volatile float keep = sum_lanes(total);
    (void)keep;
}

void multiply_probe(int64_t repetitions) { pool_run(pool_threads(), multiply_chains, &repetitions); }
