// Linear maps of few rows, as in decoding: the weights are read once for ROWS rows, at the speed of the memory.
//
// A warp takes FEATURES of the output. Its lanes divide the inputs, so that neighbours read adjacent vectors, and add up
// their sums at the end. Where there are few features, SPLIT warps divide the inputs, so that there is enough to read.
//
// Macros: ELEMENT, the type of rows and weights, and REAL, that of sums and biases; ROWS and FEATURES, powers of 2;
// THREADS, of a thread block, and SPLIT, of whose warps; HALF_PRECISION, where ELEMENT is float16 or bfloat16.
//
// A name in [brackets] labels a line for tests/test_cupy.py, which breaks each of these lines in turn.

#include "vectors.cuh"

#define WARPS (THREADS / 32)
#define SUMS (ROWS * FEATURES)  // at most 32

__device__ void write(REAL* to, REAL sum) { *to = sum; }
#ifdef HALF_PRECISION
__device__ void write(ELEMENT* to, REAL sum) { *to = rounded(sum); }
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
    __shared__ REAL of_warps[WARPS][SUMS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % SPLIT;
    const int num_groups = (num_rows + ROWS - 1) / ROWS;  // thread blocks with the same weights run at the same time
    const int first_row = blockIdx.x % num_groups * ROWS;
    const int first_feature = (blockIdx.x / num_groups * (WARPS / SPLIT) + warp / SPLIT) * FEATURES;
    const ELEMENT *rows[ROWS], *weights[FEATURES];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
        rows[r] = first_row + r < num_rows ? x + (long long)(first_row + r) * num_inputs : nullptr;
#pragma unroll
    for (int f = 0; f < FEATURES; ++f)
        weights[f] = first_feature + f < num_features ? weight + (long long)(first_feature + f) * num_inputs : nullptr;

    REAL sums[SUMS] = {};
#pragma unroll 2
    for (int vector = part * 32 + lane; vector < (num_inputs + VECTOR - 1) / VECTOR; vector += 32 * SPLIT) {  // [inputs]
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
    if (SPLIT > 1) {
        if (lane < SUMS) of_warps[warp][lane] = sum;
        __syncthreads();  // [barrier before adding] the sums of the warps are complete
        if (part > 0 || lane >= SUMS) return;
        for (int other = 1; other < SPLIT; ++other) sum += of_warps[warp + other][lane];  // [parts of the inputs]
    }
    const int row = first_row + lane / FEATURES, feature = first_feature + lane % FEATURES;
    if (lane >= SUMS || row >= num_rows || feature >= num_features) return;
    if (bias) sum += bias[feature];  // [bias]
    write(y + (long long)row * num_features + feature, sum);
}

// y = x weight^T + bias, where x is (rows, inputs) and the weight (features, inputs); bias may be null.
// Grid: (groups of rows x thread blocks of WARPS / SPLIT x FEATURES features).
extern "C" __global__ void few_rows(const ELEMENT* x, const ELEMENT* weight, const REAL* bias, ELEMENT* y, int num_rows,
                                    int num_inputs, int num_features) {
    multiply(x, weight, bias, y, num_rows, num_inputs, num_features);
}

// The same, with the sums as they are.
extern "C" __global__ void few_rows_full_precision(const ELEMENT* x, const ELEMENT* weight, const REAL* bias, REAL* y,
                                                   int num_rows, int num_inputs, int num_features) {
    multiply(x, weight, bias, y, num_rows, num_inputs, num_features);
}
