// The router of a mixture: of each token's logits, the best experts and their shares.
//
// logits: float32 [tokens][experts]; correction: float32 [experts], added to the scores to choose and not to weigh, or null.
// ids: int32 [tokens][chosen], shares: float32 [tokens][chosen], best first. score = sigmoid(logit), or softmax over the experts.
// share = score (/ sum of the chosen scores) * scale. Of equal experts the first is taken. An expert whose ranking is NaN is never
// chosen; where no other is left the id is -1 and its share 0.
//
// One warp per token: 384 scores are 12 a lane, and a choice is 12 comparisons and 5 exchanges, so that no barrier of a block is needed.
#include "device.cuh"

KC_KERNEL(WARP)
route(const float *logits, const float *correction, int experts, int chosen, int softmax, int normalise, float scale, int *ids, float *shares) {
    KC_DYNAMIC_SHARED(memory);
    float *scores = (float *)memory, *ranking = scores + experts;
    const int lane = threadIdx.x;
    const long long token = blockIdx.x;
    float highest = -INFINITY, sum = 0;
    for (int i = lane; i < experts; i += WARP) highest = fmaxf(highest, logits[token * experts + i]);
    highest = warp_max(highest);
    for (int i = lane; i < experts; i += WARP) {
        const float logit = logits[token * experts + i];
        scores[i] = softmax ? expf(logit - highest) : 1.0f / (1.0f + expf(-logit));
        sum += scores[i];
    }
    sum = warp_sum(sum);
    for (int i = lane; i < experts; i += WARP) {
        if (softmax) scores[i] /= sum;
        ranking[i] = scores[i] + (correction ? correction[i] : 0.0f);
    }
    float total = 0;
    for (int j = 0; j < chosen; j++) {
        float best = -INFINITY;
        int id = experts;
        for (int i = lane; i < experts; i += WARP)
            if (ranking[i] > best || (ranking[i] == best && i < id)) best = ranking[i], id = i;
        const Candidate winner = warp_best({best, id});
        // Only the lane that ranks it looks at it again.
        if (winner.id < experts && winner.id % WARP == lane) ranking[winner.id] = NAN;
        warp_barrier();
        const float score = winner.id < experts ? scores[winner.id] : 0.0f;
        total += score;
        if (lane == 0) {
            ids[token * chosen + j] = winner.id < experts ? winner.id : -1;
            shares[token * chosen + j] = score;
        }
    }
    if (lane) return;
    for (int j = 0; j < chosen; j++) {
        float &share = shares[token * chosen + j];
        share *= normalise ? scale / (total + 1e-20f) : scale;
    }
}
