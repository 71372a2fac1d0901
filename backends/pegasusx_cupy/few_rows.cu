// Linear maps of few rows, as in decoding: the weights are read once for ROWS rows, at the speed of the memory.
//
// Each warp takes FEATURES of the output. Its lanes divide the inputs, so that neighbours read adjacent vectors, and add
// up their sums at the end.
//
// Macros: ELEMENT, the type of rows and weights, and REAL, that of sums and biases; ROWS and FEATURES, powers of 2;
// THREADS, of a thread block; HALF_PRECISION, where ELEMENT is float16 or bfloat16.
//
// A name in [brackets] labels a line for tests/test_cupy.py, which breaks each of these lines in turn.

#include "vectors.cuh"

#define SUMS (ROWS * FEATURES)  // at most 32

__device__ void store(REAL* to, REAL sum) { *to = sum; }
#ifdef HALF_PRECISION
__device__ void store(ELEMENT* to, REAL sum) { *to = rounded(sum); }
#endif

// Add up the sums of all lanes: lane i gets that of number i % SUMS. In each round a lane keeps one half of its sums, and
// gives the other half to a lane that keeps that one.
__device__ REAL over_lanes(REAL (&sums)[SUMS]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 16; step >= SUMS; step /= 2)  // [fewer sums than lanes]
#pragma unroll
        for (int i = 0; i < SUMS; ++i) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], step);
#pragma unroll
    for (int round = 1; round <= 5; ++round)
#pragma unroll
        for (int i = 0; i < SUMS / 2; ++i) {  // of these bounds compilers know that they can unroll the loops
            const int half = SUMS >> round;
            if (i >= half) continue;
            const bool keeps_second = lane & half;
            REAL given = keeps_second ? sums[i] : sums[i + half], kept = keeps_second ? sums[i + half] : sums[i];
            sums[i] = kept + __shfl_xor_sync(0xffffffffu, given, half);  // [halves]
        }
    return sums[0];
}

template <typename Result>
__device__ void multiply(const ELEMENT* x, const ELEMENT* weight, const REAL* bias, Result* y, int num_rows,
                         int num_inputs, int num_features) {
    const int lane = threadIdx.x % 32, first_row = blockIdx.y * ROWS;
    const int first_feature = (blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * FEATURES;
    const ELEMENT *rows[ROWS], *weights[FEATURES];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
        rows[r] = first_row + r < num_rows ? x + (long long)(first_row + r) * num_inputs : nullptr;
#pragma unroll
    for (int f = 0; f < FEATURES; ++f)
        weights[f] = first_feature + f < num_features ? weight + (long long)(first_feature + f) * num_inputs : nullptr;

    REAL sums[SUMS] = {};
#pragma unroll 2
    for (int vector = lane; vector < (num_inputs + VECTOR - 1) / VECTOR; vector += 32) {  // [inputs]
        Vector w[FEATURES];
#pragma unroll
        for (int f = 0; f < FEATURES; ++f) w[f] = load(weights[f], vector, num_inputs);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const Vector row = load(rows[r], vector, num_inputs);
#pragma unroll
            for (int c = 0; c < VECTOR; ++c)
#pragma unroll
                for (int f = 0; f < FEATURES; ++f)
                    sums[r * FEATURES + f] += number(row.at[c]) * number(w[f].at[c]);
        }
    }

    REAL sum = over_lanes(sums);
    const int row = first_row + lane / FEATURES, feature = first_feature + lane % FEATURES;
    if (lane >= SUMS || row >= num_rows || feature >= num_features) return;
    if (bias) sum += bias[feature];  // [bias]
    store(y + (long long)row * num_features + feature, sum);
}

// y = x weight^T + bias, where x is (rows, inputs) and the weight (features, inputs); bias may be null.
// Grid: (features / FEATURES of each warp, rows / ROWS).
extern "C" __global__ void few_rows(const ELEMENT* x, const ELEMENT* weight, const REAL* bias, ELEMENT* y, int num_rows,
                                    int num_inputs, int num_features) {
    multiply(x, weight, bias, y, num_rows, num_inputs, num_features);
}

// The same, with the sums as they are.
extern "C" __global__ void few_rows_full_precision(const ELEMENT* x, const ELEMENT* weight, const REAL* bias, REAL* y,
                                                   int num_rows, int num_inputs, int num_features) {
    multiply(x, weight, bias, y, num_rows, num_inputs, num_features);
}
