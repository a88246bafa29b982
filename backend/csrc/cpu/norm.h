// out = x / sqrt(mean(x^2) + eps) * weight, per row; with a residual: residual += x first and the sum is normed.

struct NormJob {
    const float *x;
    float *residual;
    const float *weight;
    float eps;
    int width;
    float *out;
};

void norm_row(void *context, int row, int) {
    const NormJob &job = *(const NormJob *)context;
    const int width = job.width, whole = width / LANES * LANES;
    const float *x = job.x + (int64_t)row * width;
    float *out = job.out + (int64_t)row * width;
    if (job.residual) {
        float *residual = job.residual + (int64_t)row * width;
        for (int i = 0; i < whole; i += LANES) store(residual + i, load<Floats>(residual + i) + load<Floats>(x + i));
        for (int i = whole; i < width; i++) residual[i] += x[i];
        x = residual;
    }
    Floats squares = {};
    for (int i = 0; i < whole; i += LANES) squares += load<Floats>(x + i) * load<Floats>(x + i);
    float sum = sum_lanes(squares);
    for (int i = whole; i < width; i++) sum += x[i] * x[i];
    const float factor = 1.0f / __builtin_sqrtf(sum / (float)width + job.eps);
    for (int i = 0; i < whole; i += LANES) store(out + i, load<Floats>(x + i) * factor * load<Floats>(job.weight + i));
    for (int i = whole; i < width; i++) out[i] = x[i] * factor * job.weight[i];
}

// Below this many elements a second thread costs more than it brings.
constexpr int64_t MIN_PARALLEL = 16384;

void run_rows(int rows, int64_t elements, PoolTask task, void *job) {
    if (elements >= MIN_PARALLEL) return pool_run(rows, task, job);
    for (int row = 0; row < rows; row++) task(job, row, 0);
}

void rms_norm(const float *x, float *residual, const float *weight, float eps, int rows, int width, float *out) {
    NormJob job{x, residual, weight, eps, width, out};
    run_rows(rows, (int64_t)rows * width, norm_row, &job);
}
